"""One private training run in one work directory, from a config."""

import os
import signal
import threading
import time
from collections.abc import Callable
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
from dpmix_tf.models import build_network, weights_digest
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import checkpoints, cluster
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.filtering import KalmanOptimizer, LowPassOptimizer
from dpmix_tf.training.restore import restore_model
from dpmix_tf.training.software import versions
from dpmix_tf.training.workdir import Metrics, WorkDir, spent_updates
from dpmix_tf.views import NaiveMixup, ViewMaker, make_views


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
    kind = ViewMaker if config.views.microbatch is None else NaiveMixup
    settings |= {"num_examples": num_examples, "sensitivity": kind.sensitivity}
    if epsilon is None:
        return PrivacyPlan.for_noise(noise_multiplier=noise_multiplier, **settings)
    return PrivacyPlan.for_epsilon(epsilon=epsilon, **settings)


def make_optimizer(config: ConfigDict) -> keras.optimizers.Optimizer:
    """Makes the Keras optimizer that `config.optimizer` names.

    Raises:
      DPMixError: Keras has no such optimizer, or it does not take the arguments.
    """
    arguments = config.optimizer.to_dict()
    name = arguments.pop("name")
    memory, gain = arguments.pop("low_pass"), arguments.pop("kalman_gain")
    if memory is not None and gain is not None:
        raise DPMixError(
            f"Give one of optimizer.low_pass and optimizer.kalman_gain; received "
            f"{memory} and {gain}."
        )
    try:
        inner = keras.optimizers.get({"class_name": name, "config": arguments})
    except (ValueError, TypeError) as error:
        raise DPMixError(
            f"Keras makes no optimizer {name!r} from {arguments}: {error}"
        ) from error
    if gain is not None:
        return KalmanOptimizer(inner, gain)
    return inner if memory is None else LowPassOptimizer(inner, memory)


def load_pool(config: ConfigDict, dataset: Dataset) -> SyntheticPool | None:
    """Loads the pool that `config.views` draws from; None where it draws none.

    Raises:
      DPMixError: no path, or a pool that does not fit the data set, or that holds
        training images.
    """
    if not config.views.synthetic:
        return None
    if config.pool.path is None:
        raise DPMixError(
            f"views.synthetic = {config.views.synthetic} needs pool.path: a folder "
            "made by bin/generate_pool.py."
        )
    pool = SyntheticPool.load(
        config.pool.path,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
    )
    _refuse_training_images(pool, dataset.train)
    return pool


def _refuse_training_images(pool: SyntheticPool, source: ExampleSource) -> None:
    """Looks for examples in the pool; among ten thousand of each if there are more.

    Images that were changed are not found: a pool is public only by where it is from.
    """
    known = {hash(pool.images[index].tobytes()) for index in _some(len(pool.images))}
    indices = _some(len(source))
    found = 0
    for start in range(0, len(indices), 500):
        images, _ = source.read(indices[start : start + 500])
        found += sum(hash(image.tobytes()) in known for image in images)
    if found:
        raise DPMixError(
            f"The pool holds {found} of the training images themselves. The guarantee "
            "takes it as public: make it from images that have nothing to do with the "
            "private ones."
        )


def pin_weights(config: ConfigDict) -> ConfigDict:
    """Returns the config with the digest of the public weights it starts from, if any.

    A run that is resumed, evaluated or exported then finds the same, or says so.

    Raises:
      DPMixError: there is no such file.
    """
    if config.network.name != "pretrained":
        return config
    arguments = config.network.to_dict()
    if arguments.get("sha256") is None:
        config = config.copy_and_resolve_references()
        config.network = ConfigDict(arguments | {"sha256": weights_digest(**arguments)})
    return config


def build_model(
    config: ConfigDict,
    dataset: Dataset,
    plan: PrivacyPlan,
    seed: int,
    model_class: Callable[..., DPMixModel] = DPMixModel,
) -> DPMixModel:
    """Builds and compiles the model that a config describes, with new weights.

    Raises:
      DPMixError: the network, its views, its pool or its optimizer is not accepted.
    """
    # Initial weights come from the secret seed too: a public, known start would be
    # fine for privacy, but one seed should repeat the whole run.
    initial = randomness.derive(seed, "initial weights")
    keras.utils.set_random_seed(int(initial[0]) % 2**32)
    arguments = config.network.to_dict()
    network = build_network(
        arguments.pop("name"),
        input_shape=dataset.image_shape,
        num_classes=len(dataset.class_names),
        arguments=arguments,
        dtype_policy=config.dtype_policy,
    )
    model = model_class(
        network,
        plan=plan,
        views=make_views(config.views.to_dict(), load_pool(config, dataset)),
        seed=seed,
        chunk_size=config.run.chunk_size,
        ema_decay=config.ema_decay,
        private_metrics=config.run.private_metrics,
    )
    model.seed_chosen = config.seed is not None
    model.compile(
        optimizer=make_optimizer(config),
        metrics=["accuracy"],
        jit_compile=config.run.jit_compile,
    )
    return model


def _some(count: int) -> np.ndarray:
    """Up to ten thousand indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, 10_000)).astype(np.int64))


class Trainer:
    """Trains what a config describes; run again on the same workdir, it resumes.

    The workdir holds `config.json`, `checkpoints/` (secret: they hold the seed),
    `privacy.json` (always what has been spent so far), `metrics.jsonl` and
    `tensorboard/`.

    Args:
      config: see training/config.py.
      workdir: made if missing. Of several workers the first one writes there; the
        others never touch it.
      strategy: a tf.distribute strategy, see training.cluster; default one replica.

    Raises:
      DPMixError: anything wrong with the config, the data or the workdir, or another
        process in it; before any update is made.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | Path,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self.config = config = pin_weights(config)
        self.strategy = strategy or tf.distribute.get_strategy()
        self.is_chief = cluster.is_chief(self.strategy)
        self.workdir = WorkDir(workdir, config) if self.is_chief else None
        try:
            with cluster.lost_workers_reported(self.strategy):
                self._set_up()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self.workdir is not None:
            self.workdir.close()

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
        self._fingerprint = self.dataset.train.fingerprint()
        self._software = versions()
        saved = self._load_checkpoint() if self.is_chief else None
        if saved is not None:
            seed = int(saved[1]["seed"], 16)
        else:
            seed = randomness.fresh_seed() if config.seed is None else config.seed
        self._seed = cluster.seed_from_chief(self.strategy, seed)
        facts = {
            "plan": self.plan.to_dict(),
            "training_data": self._fingerprint,
            "software": self._software,
        }
        facts = cluster.shared_facts(config, **facts)
        cluster.refuse_different_workers(self.strategy, facts)
        with self.strategy.scope():
            self.model = self._build()
        pool = self.model.views.pool
        facts = {"pool": pool.digest if pool else None}
        cluster.refuse_different_workers(self.strategy, facts)
        if saved is not None:
            restore_model(self.model, *saved)
        for variable in sum(self.model.state().values(), []):
            if cluster.num_workers(self.strategy) > 1:
                variable.assign(cluster.from_chief(self.strategy, np.asarray(variable)))
        if self.model.updates:
            logging.info("Resuming after update %d.", self.model.updates)
        if self.workdir is not None:
            self.workdir.write_config()

    def _load_checkpoint(self):
        """The latest checkpoint, (arrays, metadata), if it may be gone on from."""
        assert self.workdir is not None
        saved = checkpoints.load_latest(self.workdir.checkpoints)
        spent = spent_updates(self.workdir.path)
        if saved is None and spent:
            raise DPMixError(
                f"{self.workdir.path} has spent {spent} updates (privacy.json) and its "
                "checkpoints are gone: a new start there would spend again and report "
                "only once. Use another --workdir, and count both."
            )
        if saved is not None and saved[1]["data_fingerprint"] != self._fingerprint:
            raise DPMixError(
                f"The training data has changed since {self.workdir.path} was begun. A "
                "resumed run repeats its noise, which is safe only on the same "
                "examples: put them back, or use another --workdir."
            )
        return saved

    def _build(self) -> DPMixModel:
        model = build_model(self.config, self.dataset, self.plan, self._seed)
        self._logits = tf.function(model, reduce_retracing=True)
        return model

    def run(self) -> dict[str, Any]:
        """Trains to the plan's last update, then evaluates on the test set once.

        SIGINT and SIGTERM let the update under way end, or abandon it where that takes
        more than three seconds, write a checkpoint and stop. A second one kills.

        Returns:
          The final event of metrics.jsonl: test_accuracy, test_accuracy_ema, epsilon,
          delta, updates, ...

        Raises:
          KeyboardInterrupt: stopped by a signal, after the checkpoint.
          DPMixError: a file cannot be written.
        """
        if self.workdir is not None:
            self.workdir.refuse_if_closed()
        try:
            return self._run()
        finally:
            self._close()

    def _run(self) -> dict[str, Any]:
        run, plan, model = self.config.run, self.plan, self.model
        metrics = None
        if self.workdir is not None:
            metrics = Metrics(self.workdir.path, keep_until=model.updates)
            if metrics.final is not None:
                logging.info("%s holds a finished run.", self.workdir.path)
                return metrics.final
        if model.updates == 0:
            self._checkpoint()  # the seed must survive a stop before the first update
        batches = PoissonBatches(self.dataset.train, plan, seed=self._seed)
        batches.seed_chosen = self.config.seed is not None
        bar = tqdm(
            total=plan.updates,
            initial=model.updates,
            unit="update",
            dynamic_ncols=True,
            mininterval=0.5 if os.isatty(2) else 30,
            disable=not self.is_chief,
        )
        shown: dict[str, str] = {}
        self._stopping = stopping = _StopSignal(model.abandon_update)

        def after_update(batch, logs):
            bar.update()
            model.stop_training = stopping.received

        each_update = keras.callbacks.LambdaCallback(on_train_batch_end=after_update)
        with bar, stopping:
            self._evaluate_if_due(metrics, {}, shown)  # killed between the two
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
                started, waited = time.perf_counter(), model.input_seconds
                history = self._fit(batches, stop - model.updates, each_update)
                waited = model.input_seconds - waited
                shown["wait"] = f"{waited / (time.perf_counter() - started):.1%}"
                if self.workdir is not None:
                    self.workdir.write_privacy(model)
                self._checkpoint()
                if stopping.received:
                    raise self._stopped()
                self._evaluate_if_due(metrics, history, shown)
                bar.set_postfix(shown)
        test = self.dataset.test if self.config.run.test else None
        event = self._evaluate("test", test)
        return metrics.write("final", model, event) if metrics is not None else event

    def _fit(self, batches, updates: int, callback) -> dict[str, list[float]]:
        """Fits; returns what Keras recorded, nothing of an abandoned update."""
        try:
            return self.model.fit(
                batches, steps_per_epoch=updates, verbose=0, callbacks=[callback]
            ).history
        except tf.errors.InvalidArgumentError:
            if not self._stopping.abandoned:
                raise
            return {}

    def _stopped(self) -> KeyboardInterrupt:
        return KeyboardInterrupt(
            f"Stopped after update {self.model.updates} of {self.plan.updates}; the "
            "same command resumes there."
        )

    def _evaluate_if_due(
        self,
        metrics: Metrics | None,
        history: dict[str, list[float]],
        shown: dict[str, str],
    ) -> None:
        """Evaluates on the validation set at the updates where it is to be done."""
        updates = self.model.updates
        due = updates == self.plan.updates or (
            updates > 0 and updates % self.config.run.evaluate_every == 0
        )
        if metrics is None or not due or metrics.reached == updates:
            return
        event = self._evaluate("validation", self.dataset.validation)
        event |= {
            name: values[-1]
            for name, values in history.items()
            if name.startswith("private_")
        }
        metrics.write("validation", self.model, event)
        if "validation_accuracy" in event:
            shown["val_acc"] = f"{event['validation_accuracy']:.4f}"

    def _evaluate(self, part: str, source: ExampleSource | None) -> dict[str, Any]:
        """Accuracy of the raw and of the averaged weights; {} without examples.

        Of the averaged weights also by class, None for one without examples.
        """
        if source is None or not self.is_chief:
            return {}
        examples = ordered_batches(source, self.config.run.evaluation_batch_size)
        raw, _ = self._accuracy(examples)
        with self.model.average.applied():
            averaged, by_class = self._accuracy(examples)
        return {
            f"{part}_accuracy": raw,
            f"{part}_accuracy_ema": averaged,
            f"{part}_accuracy_ema_by_class": by_class,
        }

    def _accuracy(self, examples: tf.data.Dataset) -> tuple[float, list[float | None]]:
        """In this process alone, whatever the strategy: the others may wait."""
        classes = len(self.dataset.class_names)
        right, seen = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        for images, labels in examples:
            if self._stopping.received:
                raise self._stopped()
            labels = labels.numpy()
            correct = np.argmax(self._logits(images), axis=-1) == labels
            seen += np.bincount(labels, minlength=classes)
            right += np.bincount(labels[correct], minlength=classes)
        by_class = [r / s if s else None for r, s in zip(right, seen, strict=True)]
        return float(right.sum() / max(seen.sum(), 1)), by_class

    def _checkpoint(self) -> None:
        if self.workdir is None:
            return
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
            "views_per_example": self.model.views.views_per_example,
            "pool_digest": pool.digest if pool else None,
            "data_fingerprint": self._fingerprint,
            "software": self._software,
        }
        checkpoints.save(self.workdir.checkpoints, arrays, metadata)
        checkpoints.prune(self.workdir.checkpoints, self.config.run.keep_checkpoints)


_GRACE = 3.0  # seconds that an update may take to end after a signal


def _next_multiple(value: int, step: int) -> int:
    return (value // step + 1) * step


class _StopSignal:
    """Notes SIGINT and SIGTERM while its context lasts; the second one kills.

    Python handles a signal when TensorFlow's call returns, which in a long update may
    be hours from now; the operating system's byte down a pipe reaches another thread at
    once.
    """

    def __init__(self, abandon: Callable[[], None]):
        self.received = False
        self.abandoned = False
        self._abandon = abandon
        self._left = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1])
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _note(self, number, frame) -> None:
        self.received = True
        self._restore()

    def _watch(self) -> None:
        while not self._left.is_set():
            byte = os.read(self._pipe[0], 1)
            if byte[0] in (signal.SIGINT, signal.SIGTERM) and not self._left.wait(
                _GRACE
            ):
                self.abandoned = True
                self._abandon()
                return

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *unused) -> None:
        self._left.set()
        if not self._before:
            return
        self._restore()
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._pipe[1], b"\0")  # wakes the thread
        self._thread.join()
        for end in self._pipe:
            os.close(end)
