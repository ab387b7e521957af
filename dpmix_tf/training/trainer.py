"""One private training run in one work directory, from a config."""

import contextlib
import fcntl
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from dpmix_tf.data import (
    Dataset,
    ExampleSource,
    PoissonBatches,
    load_dataset,
    ordered_batches,
)
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic, write_text_atomic
from dpmix_tf.models import build_network
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import checkpoints
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.views import ViewMaker


def make_plan(config: ConfigDict, num_examples: int) -> PrivacyPlan:
    """Makes the plan that `config.privacy` asks for.

    Raises:
      DPMixError: not exactly one of epsilon and noise_multiplier is given, or a value
        is out of range.
    """
    settings = config.privacy.to_dict()
    epsilon = settings.pop("epsilon")
    noise_multiplier = settings.pop("noise_multiplier")
    if (epsilon is None) == (noise_multiplier is None):
        raise DPMixError(
            "Give exactly one of privacy.epsilon and privacy.noise_multiplier; "
            f"received epsilon={epsilon}, noise_multiplier={noise_multiplier}."
        )
    if epsilon is None:
        return PrivacyPlan.for_noise(
            noise_multiplier=noise_multiplier, num_examples=num_examples, **settings
        )
    return PrivacyPlan.for_epsilon(
        epsilon=epsilon, num_examples=num_examples, **settings
    )


def make_optimizer(config: ConfigDict) -> keras.optimizers.Optimizer:
    """Makes the Keras optimizer that `config.optimizer` names.

    Raises:
      DPMixError: Keras has no such optimizer, or it does not take the arguments.
    """
    arguments = config.optimizer.to_dict()
    name = arguments.pop("name")
    try:
        return keras.optimizers.get({"class_name": name, "config": arguments})
    except (ValueError, TypeError) as error:
        raise DPMixError(
            f"Keras makes no optimizer {name!r} from {arguments}: {error}"
        ) from error


def load_pool(config: ConfigDict, dataset: Dataset) -> SyntheticPool | None:
    """Loads the pool that `config.views` draws from; None where it draws none.

    Raises:
      DPMixError: no path, or a pool that does not fit the data set.
    """
    if not config.views.synthetic:
        return None
    if config.pool.path is None:
        raise DPMixError(
            f"views.synthetic = {config.views.synthetic} needs pool.path: a folder "
            "made by bin/generate_pool.py."
        )
    return SyntheticPool.load(
        config.pool.path,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
    )


class Trainer:
    """Trains what a config describes; run again on the same workdir, it resumes.

    The workdir holds `config.json`, `checkpoints/` (secret: they hold the seed),
    `privacy.json` (always what has been spent so far), `metrics.jsonl` and
    `tensorboard/`.

    Args:
      config: see training/config.py.
      workdir: made if missing.

    Raises:
      DPMixError: anything wrong with the config, the data or the workdir, before any
        update is made.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path):
        self.config = config
        self.workdir = Path(workdir)
        self._checkpoints = self.workdir / "checkpoints"
        self._claim_config()
        for name in ("evaluate_every", "checkpoint_every", "keep_checkpoints"):
            if config.run[name] < 1:
                raise DPMixError(
                    f"run.{name} must be 1 or more, received: {config.run[name]}."
                )
        self.dataset = load_dataset(**config.data.to_dict())
        self.plan = make_plan(config, len(self.dataset.train))
        saved = checkpoints.load_latest(self._checkpoints)
        if saved is not None:
            self._seed = int(saved[1]["seed"], 16)
        else:
            self._seed = randomness.fresh_seed() if config.seed is None else config.seed
        self.model = self._build()
        if saved is not None:
            _restore(self.model, *saved)
            logging.info("Resuming after update %d.", self.model.updates)

    def _claim_config(self) -> None:
        """Writes config.json, or compares with the one that is there."""
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            self._checkpoints.chmod(0o700)
        except OSError as error:
            raise DPMixError(
                f"Cannot write to the workdir {self.workdir}: {error.strerror}. Choose "
                "another with --workdir."
            ) from error
        path = self.workdir / "config.json"
        mine = json.loads(self.config.to_json())
        if path.exists():
            theirs = json.loads(path.read_text())
            differences = _differences(theirs, mine)
            if differences:
                raise DPMixError(
                    f"{self.workdir} holds a run with another configuration:\n"
                    + "\n".join(f"  {line}" for line in differences)
                    + "\nUse another --workdir, or the same settings to resume."
                )
        # `run` may differ; the newest stands. A seed chosen by the user is in it.
        text = json.dumps(mine, indent=2) + "\n"
        write_atomic(path, lambda file: file.write(text.encode()), private=True)

    def _build(self) -> DPMixModel:
        # Initial weights come from the secret seed too: a public, known start would be
        # fine for privacy, but one seed should repeat the whole run.
        initial = randomness.derive(self._seed, "initial weights")
        keras.utils.set_random_seed(int(initial[0]) % 2**32)
        arguments = self.config.network.to_dict()
        network = build_network(
            arguments.pop("name"),
            input_shape=self.dataset.image_shape,
            num_classes=len(self.dataset.class_names),
            arguments=arguments,
        )
        model = DPMixModel(
            network,
            plan=self.plan,
            views=ViewMaker(
                **self.config.views.to_dict(),
                pool=load_pool(self.config, self.dataset),
            ),
            seed=self._seed,
            chunk_size=self.config.run.chunk_size,
            ema_decay=self.config.ema_decay,
            private_metrics=self.config.run.private_metrics,
        )
        model.compile(optimizer=make_optimizer(self.config), metrics=["accuracy"])
        return model

    def run(self) -> dict[str, Any]:
        """Trains to the plan's last update, then evaluates on the test set once.

        SIGINT and SIGTERM let the update under way end, write a checkpoint and stop.

        Returns:
          The final event of metrics.jsonl: test_accuracy, test_accuracy_ema, epsilon,
          delta, updates, ...

        Raises:
          KeyboardInterrupt: stopped by a signal, after the checkpoint.
          DPMixError: another process trains in the workdir, or a file cannot be
            written.
        """
        with _only_process_in(self.workdir):
            return self._run()

    def _run(self) -> dict[str, Any]:
        run, plan, model = self.config.run, self.plan, self.model
        metrics = _Metrics(self.workdir, keep_until=model.updates)
        if metrics.final is not None:
            logging.info("%s holds a finished run.", self.workdir)
            return metrics.final
        if model.updates == 0:
            self._checkpoint()  # the seed must survive a stop before the first update
        batches = PoissonBatches(self.dataset.train, plan, seed=self._seed)
        bar = tqdm(
            total=plan.updates,
            initial=model.updates,
            unit="update",
            dynamic_ncols=True,
            mininterval=0.5 if os.isatty(2) else 30,
        )
        shown: dict[str, str] = {}
        stopping = _StopSignal()

        def after_update(batch, logs):
            bar.update()
            model.stop_training = stopping.received

        each_update = keras.callbacks.LambdaCallback(on_train_batch_end=after_update)
        with bar, stopping:
            while model.updates < plan.updates:
                stop = min(
                    plan.updates,
                    _next_multiple(model.updates, run.evaluate_every),
                    _next_multiple(model.updates, run.checkpoint_every),
                )
                # What will have been spent when the bar next stops, so that it never
                # shows less than has been.
                shown["epsilon"] = f"<={plan.epsilon(stop) + 5e-4:.3f}"
                bar.set_postfix(shown)
                history = model.fit(
                    batches,
                    steps_per_epoch=stop - model.updates,
                    verbose=0,
                    callbacks=[each_update],
                )
                self._write_privacy()
                if stopping.received:
                    self._checkpoint()
                    raise KeyboardInterrupt(
                        f"Stopped after update {model.updates} of {plan.updates}; "
                        "the same command resumes there."
                    )
                if stop % run.checkpoint_every == 0 or stop == plan.updates:
                    self._checkpoint()
                if stop % run.evaluate_every == 0 or stop == plan.updates:
                    event = self._evaluate("validation", self.dataset.validation)
                    event |= {
                        name: values[-1]
                        for name, values in history.history.items()
                        if name.startswith("private_")
                    }
                    metrics.write("validation", model, event)
                    if "validation_accuracy" in event:
                        shown["val_acc"] = f"{event['validation_accuracy']:.4f}"
                        bar.set_postfix(shown)
        event = self._evaluate("test", self.dataset.test)
        return metrics.write("final", model, event)

    def _evaluate(self, part: str, source: ExampleSource | None) -> dict[str, float]:
        """Accuracy of the raw and of the averaged weights; {} without examples."""
        if source is None:
            return {}
        examples = ordered_batches(source, self.config.run.evaluation_batch_size)
        raw = self.model.evaluate(examples, verbose=0, return_dict=True)
        with self.model.average.applied():
            averaged = self.model.evaluate(examples, verbose=0, return_dict=True)
        return {
            f"{part}_accuracy": raw["accuracy"],
            f"{part}_accuracy_ema": averaged["accuracy"],
        }

    def _checkpoint(self) -> None:
        arrays = {
            f"{group}/{index}": np.asarray(variable)
            for group, variables in self.model.state().items()
            for index, variable in enumerate(variables)
        }
        pool = self.model.views.pool
        metadata = {
            "updates": self.model.updates,
            "seed": f"{self._seed:032x}",
            "plan": self.plan.to_dict(),
            "class_names": self.dataset.class_names,
            "image_shape": self.dataset.image_shape,
            "pool_digest": pool.digest if pool else None,
        }
        checkpoints.save(self._checkpoints, arrays, metadata)
        checkpoints.prune(self._checkpoints, self.config.run.keep_checkpoints)

    def _write_privacy(self) -> None:
        """Writes privacy.json, before anything else that these updates changed.

        After a crash the run repeats updates it had made, draw for draw; until it has
        caught up, what had been spent stands.
        """
        path = self.workdir / "privacy.json"
        updates = self.model.updates
        if path.exists():
            updates = max(updates, int(json.loads(path.read_text())["updates"]))
        plan = self.plan
        epsilon = plan.epsilon(updates)
        spent = {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "clip_norm": plan.clip_norm,
            "sampling_probability": plan.sampling_probability,
            "num_examples": plan.num_examples,
            "expected_batch_size": plan.expected_batch_size,
            "updates": updates,
            "planned_updates": plan.updates,
            "accountant": plan.accountant,
            "seed_chosen_by_user": self.config.seed is not None,
            "statement": self.model.statement(updates),
        }
        write_text_atomic(path, json.dumps(spent, indent=2) + "\n")


class _Metrics:
    """metrics.jsonl and TensorBoard. Holds nothing un-noised unless asked to."""

    def __init__(self, workdir: Path, keep_until: int):
        self._path = workdir / "metrics.jsonl"
        self._writer = tf.summary.create_file_writer(str(workdir / "tensorboard"))
        events = []
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            events = [json.loads(line) for line in lines if line.endswith("}")]
        # A resumed run writes again what came after its checkpoint.
        self._events = [event for event in events if event["updates"] <= keep_until]
        last = self._events[-1] if self._events else {}
        self.final = last if last.get("event") == "final" else None

    def write(
        self, kind: str, model: DPMixModel, values: dict[str, float]
    ) -> dict[str, Any]:
        """Appends one event and returns it."""
        epsilon = model.epsilon
        event = {
            "event": kind,
            "updates": model.updates,
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": model.plan.delta,
            **values,
        }
        self._events.append(event)
        text = "".join(json.dumps(one) + "\n" for one in self._events)
        write_text_atomic(self._path, text)
        with self._writer.as_default(step=model.updates):
            tf.summary.scalar("privacy/epsilon", epsilon)
            for name, value in values.items():
                part, _, rest = name.partition("_")
                tf.summary.scalar(f"{part}/{rest}", value)
        self._writer.flush()
        return event


def restore_network(
    workdir: str | Path, *, weights: str = "ema"
) -> tuple[keras.Model, dict[str, Any]]:
    """Loads the network of a run's newest checkpoint; needs no training data.

    Args:
      workdir: of a run.
      weights: "ema" for the averaged weights, "raw" for the last update's.

    Returns:
      The network, float images in [0, 1] -> logits; the checkpoint's metadata
      (class_names, image_shape, updates, plan) without its secret seed.

    Raises:
      DPMixError: no run, or no whole checkpoint.
    """
    if weights not in ("ema", "raw"):
        raise DPMixError(f"weights must be 'ema' or 'raw', received: {weights!r}.")
    workdir = Path(workdir)
    saved = checkpoints.load_latest(workdir / "checkpoints")
    if saved is None:
        raise DPMixError(
            f"{workdir} holds no checkpoint. Expected the --workdir of a training run."
        )
    arrays, metadata = saved
    config = json.loads((workdir / "config.json").read_text())
    arguments = dict(config["network"])
    network = build_network(
        arguments.pop("name"),
        input_shape=tuple(metadata["image_shape"]),
        num_classes=len(metadata["class_names"]),
        arguments=arguments,
    )
    _assign("network", network.variables, arrays)
    if weights == "ema":
        _assign("average", network.trainable_variables, arrays)
    del metadata["seed"]
    return network, metadata


def _restore(
    model: DPMixModel, arrays: dict[str, np.ndarray], metadata: dict[str, Any]
) -> None:
    pool = model.views.pool
    if metadata["pool_digest"] != (pool.digest if pool else None):
        raise DPMixError(
            "The pool of synthetic images has changed since the checkpoint was made. "
            "Put the old one back, or use another --workdir."
        )
    if metadata["plan"] != model.plan.to_dict():
        raise DPMixError(
            "The checkpoint was made under another plan:\n"
            + "\n".join(
                f"  {line}"
                for line in _differences(metadata["plan"], model.plan.to_dict())
            )
            + "\nUse another --workdir; mixing plans would make epsilon wrong."
        )
    for group, variables in model.state().items():
        _assign(group, variables, arrays)


def _assign(group: str, variables, arrays: dict[str, np.ndarray]) -> None:
    for index, variable in enumerate(variables):
        name = f"{group}/{index}"
        if name not in arrays or arrays[name].shape != tuple(variable.shape):
            raise DPMixError(
                f"The checkpoint does not fit this network: {name} should have shape "
                f"{tuple(variable.shape)}. It was written by another version or config."
            )
        variable.assign(arrays[name])


def _differences(theirs: dict, mine: dict, prefix: str = "") -> list[str]:
    """Lines of what differs; `run` and where data and pool lie may."""
    lines = []
    for key in sorted(theirs.keys() | mine.keys()):
        name = prefix + key
        if name in ("run", "data.data_dir", "pool"):
            continue
        old, new = theirs.get(key), mine.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, name + ".")
        elif old != new:
            lines.append(f"{name}: {old!r} there, {new!r} here")
    return lines


def _next_multiple(value: int, step: int) -> int:
    return (value // step + 1) * step


class _StopSignal:
    """Notes SIGINT and SIGTERM while its context lasts; the second one kills."""

    def __init__(self):
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.received = True
        self.__exit__()

    def __exit__(self, *unused) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _only_process_in(workdir: Path) -> Iterator[None]:
    """Keeps a second process out while one trains; the lock dies with the process."""
    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DPMixError(
                f"Another process is training in {workdir}. Wait for it, or use "
                "another --workdir."
            ) from error
        yield
