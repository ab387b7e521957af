"""One private training run in one work directory, from a config."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
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
from dpmix_tf.models import build_network
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import checkpoints
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.restore import restore_model
from dpmix_tf.training.workdir import Metrics, WorkDir
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
      DPMixError: anything wrong with the config, the data or the workdir, or another
        process in it; before any update is made.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path):
        self.config = config
        self.workdir = WorkDir(workdir, config)
        try:
            self._set_up()
        except BaseException:
            self.workdir.close()
            raise

    def _set_up(self) -> None:
        config = self.config
        for name in (
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "evaluation_batch_size",
        ):
            if config.run[name] < 1:
                raise DPMixError(
                    f"run.{name} must be 1 or more, received: {config.run[name]}."
                )
        self.dataset = load_dataset(**config.data.to_dict())
        self.plan = make_plan(config, len(self.dataset.train))
        saved = checkpoints.load_latest(self.workdir.checkpoints)
        if saved is None and self.workdir.spent_updates():
            raise DPMixError(
                f"{self.workdir.path} has spent {self.workdir.spent_updates()} updates "
                "(privacy.json) and its checkpoints are gone: a new start there would "
                "spend again and report only once. Use another --workdir, and count "
                "both."
            )
        if saved is not None:
            self._seed = int(saved[1]["seed"], 16)
        else:
            self._seed = randomness.fresh_seed() if config.seed is None else config.seed
        self.model = self._build()
        if saved is not None:
            if saved[1]["data_fingerprint"] != self.dataset.train.fingerprint():
                raise DPMixError(
                    f"The training data has changed since {self.workdir.path} was "
                    "begun. A resumed run repeats its noise, which is safe only on the "
                    "same examples: put them back, or use another --workdir."
                )
            restore_model(self.model, *saved)
            logging.info("Resuming after update %d.", self.model.updates)
        self.workdir.write_config()

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
        model.seed_chosen = self.config.seed is not None
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
          DPMixError: a file cannot be written.
        """
        self.workdir.refuse_if_closed()
        try:
            return self._run()
        finally:
            self.workdir.close()

    def _run(self) -> dict[str, Any]:
        run, plan, model = self.config.run, self.plan, self.model
        metrics = Metrics(self.workdir.path, keep_until=model.updates)
        if metrics.final is not None:
            logging.info("%s holds a finished run.", self.workdir.path)
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
                shown["epsilon"] = f"<={round_up(plan.epsilon(stop))}"
                bar.set_postfix(shown)
                history = model.fit(
                    batches,
                    steps_per_epoch=stop - model.updates,
                    verbose=0,
                    callbacks=[each_update],
                )
                self.workdir.write_privacy(model)
                reached = model.updates == stop
                if reached and stop in (
                    plan.updates,
                    _next_multiple(stop - 1, run.evaluate_every),
                ):
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
                # Last, so that a run that stops before it repeats what it has written.
                self._checkpoint()
                if stopping.received:
                    raise KeyboardInterrupt(
                        f"Stopped after update {model.updates} of {plan.updates}; "
                        "the same command resumes there."
                    )
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
            "data_fingerprint": self.dataset.train.fingerprint(),
        }
        checkpoints.save(self.workdir.checkpoints, arrays, metadata)
        checkpoints.prune(self.workdir.checkpoints, self.config.run.keep_checkpoints)


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
