"""Trainer: one private training run from a config, in its own work directory."""

import json
import os
import time
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
    inspection,
    load_dataset,
)
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.privacy import Ledger, randomness
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.training import checkpoints, cluster
from dpmix_tf.training.build import Start, build_model, make_plan, pin_weights
from dpmix_tf.training.checks import check_intervals
from dpmix_tf.training.class_counts import count_classes, plan_of_counts
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.evaluation import Evaluator, Score, summary
from dpmix_tf.training.optimizers import with_plain_schedule
from dpmix_tf.training.report import describe_release, noised_accuracy, plan_of_report
from dpmix_tf.training.restore import load_to_resume, restore_model
from dpmix_tf.training.software import versions
from dpmix_tf.training.stopping import StopSignal
from dpmix_tf.training.warm_start import warm_start
from dpmix_tf.training.workdir import Metrics, WorkDir


class Trainer:
    """Trains what a config describes; on a workdir that already has a run, resumes it.

    The workdir holds `config.json`, `checkpoints/` (secret: they hold the seed),
    `privacy.json` (always what has been spent so far), `metrics.jsonl` and
    `tensorboard/`.

    Args:
      config: see training/config.py.
      workdir: made if missing. With several workers, only the first one writes there;
        the others never touch it.
      strategy: a tf.distribute strategy, see training.cluster; by default one replica.
      shared_seed: a secret seed that other runs use too (an experiment's paired runs),
        int in [0, 2**128); config.seed must then be None. By default the seed is for
        this run alone.
      dataset: what config.data describes, if it is loaded already.
      trial: whether training.tuning chooses among this run and others.

    Raises:
      DPMixError: the config, the data or the workdir is invalid, or another process
        uses the workdir; raised before any update is made.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | Path,
        strategy: tf.distribute.Strategy | None = None,
        *,
        shared_seed: int | None = None,
        dataset: Dataset | None = None,
        trial: bool = False,
    ):
        if (config.privacy.trials != 1) > trial:
            raise DPMixError(
                "privacy.trials is for bin/tune.py, which draws the number of trials "
                "and chooses among them. Leave it out."
            )
        self._new_seed = randomness.new_seed(config.seed, shared_seed)
        self.config = config = pin_weights(with_plain_schedule(config))
        self.strategy = strategy or tf.distribute.get_strategy()
        self.is_chief = cluster.is_chief(self.strategy)
        self.workdir = WorkDir(workdir, config) if self.is_chief else None
        try:
            with cluster.lost_workers_reported(self.strategy):
                self._set_up(dataset)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self.workdir is not None:
            self.workdir.close()

    def _set_up(self, dataset: Dataset | None) -> None:
        config = self.config
        check_intervals(config.run)
        self.dataset = dataset or load_dataset(**config.data.to_dict())
        self.plan = make_plan(
            config, len(self.dataset.train), self.dataset.train.record
        )
        self._report = plan_of_report(config, self.dataset, self._new_seed.origin)
        self._fingerprint = self.dataset.train.fingerprint()
        self._software = versions()
        workdir = self.workdir
        saved = load_to_resume(workdir, self._fingerprint) if workdir else None
        if saved is not None:
            seed = randomness.Seed(int(saved[1]["seed"], 16), randomness.SYSTEM)
        else:
            if self.is_chief:
                inspection.show(self.dataset)
            seed = self._new_seed
        self._seed = cluster.seed_from_chief(self.strategy, seed)
        facts = cluster.shared_facts(
            config,
            plan=self.plan.to_dict(),
            training_data=self._fingerprint,
            software=self._software,
        )
        cluster.refuse_different_workers(self.strategy, facts)
        start = None
        if self.is_chief and saved is None:  # the others take the chief's weights
            start = warm_start(config, self.dataset, seed, self._cache_dir())
        counted = self._count_classes(saved)
        self._start = start.record if start else saved and saved[1].get("warm_start")
        with self.strategy.scope():
            self.model = self._build(start)
        pool = self.model.views.pool
        facts = {"pool": pool.digest if pool else None}
        cluster.refuse_different_workers(self.strategy, facts)
        spent = None
        if saved is not None:
            restore_model(self.model, *saved)
            spent = {name: saved[1][name] for name in ("ledger", "run")}
        spent = json.loads(cluster.text_from_chief(self.strategy, json.dumps(spent)))
        if spent is not None:
            history = Ledger.from_list(spent["ledger"], "The checkpoint")
            self.model.account.resume(history, spent["run"])
        for variable in sum(self.model.state().values(), []):
            if cluster.num_workers(self.strategy) > 1:
                variable.assign(cluster.from_chief(self.strategy, np.asarray(variable)))
        self.model.account.absorb(counted)
        if self.model.updates:
            logging.info("Resuming after update %d.", self.model.updates)
        if self.workdir is not None:
            self.workdir.write_config()

    def _count_classes(self, saved) -> Ledger:
        """Finds the class weights, once in a run; returns what that has spent now."""
        weights, spent = saved and saved[1].get("class_weights"), Ledger()
        self._class_weights = None
        plan = plan_of_counts(self.config, self.plan.num_examples, self.plan.record)
        if plan is None:
            return spent
        if self.is_chief and saved is None:
            found = count_classes(self.config, self.dataset.train, plan, self._seed)
            weights, spent = found
        told = cluster.text_from_chief(self.strategy, json.dumps(weights))
        self._class_weights = json.loads(told)
        return spent

    def _cache_dir(self) -> Path | None:
        """Where features are kept: several workers need a place that all can read."""
        if self.config.run.cache_dir is not None:
            return local_path(self.config.run.cache_dir, "run.cache_dir")
        alone = cluster.num_workers(self.strategy) == 1
        return self.workdir.path / "cache" if alone and self.workdir else None

    def _build(self, start: Start | None) -> DPMixModel:
        run, cache_dir = self.config.run, self._cache_dir()
        model = build_model(
            *(self.config, self.dataset, self.plan, self._seed),
            cache_dir=cache_dir,
            start=start,
            class_weights=self._class_weights,
        )
        self._evaluator = Evaluator(
            model,
            batch_size=run.evaluation_batch_size,
            cache_dir=cache_dir,
            cache_dtype=run.cache_dtype,
        )
        return model

    def run(self) -> dict[str, Any]:
        """Trains to the plan's last update, then evaluates on the test set once.

        SIGINT and SIGTERM let the current update end, or abandon it if that takes more
        than three seconds, then write a checkpoint and stop. A second signal kills.

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

    def train_and_score(self, source: ExampleSource) -> Score:
        """Trains to the plan's last update, and scores the averaged weights.

        Nothing is measured or written but checkpoints and what is spent. A new Trainer
        of the same workdir can still `run`, which then measures the test set.

        Args:
          source: what to score on.

        Returns:
          The score, without noise: it is private.

        Raises:
          KeyboardInterrupt: see run.
          DPMixError: a file cannot be written.
        """
        assert self.workdir is not None
        self.workdir.refuse_if_closed()
        try:
            self._train(None)
            with self.model.average.applied():
                return self._score(source)
        finally:
            self._close()

    def _run(self) -> dict[str, Any]:
        metrics = None
        if self.workdir is not None:
            metrics = Metrics(self.workdir.path, keep_until=self.model.updates)
            if metrics.final is not None:
                logging.info("%s holds a finished run.", self.workdir.path)
                return metrics.final
        self._train(metrics)
        test = self.dataset.test if self.config.run.test else None
        event = self._evaluate("test", test)
        if self._report is not None and self.workdir is not None:
            release = describe_release(self._report, self.model.ledger)
            self.workdir.write_privacy(self.model, release)
        if metrics is None:
            return event
        return metrics.write("final", self.model, event)

    def _train(self, metrics: Metrics | None) -> None:
        """Makes the updates that are left, with checkpoints and evaluations."""
        run, plan, model = self.config.run, self.plan, self.model
        if model.updates == 0:
            self._checkpoint()  # the seed must survive a stop before the first update
        batches = PoissonBatches(self.dataset.train, plan, seed=self._seed)
        bar = tqdm(
            total=plan.updates,
            initial=model.updates,
            unit="update",
            dynamic_ncols=True,
            mininterval=0.5 if os.isatty(2) else 30,
            disable=not self.is_chief,
        )
        shown: dict[str, str] = {}
        self._stopping = stopping = StopSignal(model.abandon_update)

        def after_update(batch, logs):
            bar.update()
            model.stop_training = stopping.received

        each_update = keras.callbacks.LambdaCallback(on_train_batch_end=after_update)
        with bar, stopping:
            # The run may have been killed between a checkpoint and its evaluation.
            self._evaluate_if_due(metrics, {}, shown)
            while model.updates < plan.updates:
                made, pauses = model.updates, (run.evaluate_every, run.checkpoint_every)
                stop = min(plan.updates, *(made - made % n + n for n in pauses))
                # What will have been spent when the bar next stops, so that it never
                # shows less than what has been spent.
                shown["epsilon"] = f"<={round_up(plan.epsilon(stop))}"
                bar.set_postfix(shown)
                started, waited = time.perf_counter(), model.input_seconds
                try:
                    history = self._fit(batches, stop - model.updates, each_update)
                finally:  # whatever happened, record first what was spent
                    if self.workdir is not None:
                        self.workdir.write_privacy(model)
                waited = model.input_seconds - waited
                shown["wait"] = f"{waited / (time.perf_counter() - started):.1%}"
                self._checkpoint()
                if stopping.received:
                    raise self._stopped()
                self._evaluate_if_due(metrics, history, shown)
                bar.set_postfix(shown)

    def _fit(self, batches, updates: int, callback) -> dict[str, list[float]]:
        """Fits; returns what Keras recorded, or nothing if an update was abandoned."""
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
        """Evaluates on the validation set if it is due after this update."""
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
        for metric, short in (("accuracy", "val_acc"), ("auroc", "val_auroc")):
            if (value := event.get(f"validation_{metric}")) is not None:
                shown[short] = f"{value:.4f}"

    def _evaluate(self, part: str, source: ExampleSource | None) -> dict[str, Any]:
        """Scores of the raw and the averaged weights; {} if there are no examples.

        For the averaged weights also by class; on test examples, all figures, or with
        report.noise the noised accuracy alone.
        """
        if source is None or not self.is_chief:
            return {}
        if part == "test" and self._report is not None:
            with self.model.average.applied():
                score = self._score(source)
            return noised_accuracy(score, source, self._report, self._seed)
        raw = self._score(source)
        with self.model.average.applied():
            averaged = self._score(source)
        name = f"{part}_{raw.metric}"
        event: dict[str, Any] = {
            name: raw.overall,
            f"{name}_ema": averaged.overall,
            f"{name}_ema_by_class": averaged.by_class,
        }
        if part == "test":
            figures = summary(averaged, source.class_names, source.people)
            event["test_figures_ema"] = figures
        return event

    def _score(self, source: ExampleSource) -> Score:
        def stop_if_told():
            if self._stopping.received:
                raise self._stopped()

        return self._evaluator.score(source, before_batch=stop_if_told)

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
            "ledger": self.model.ledger.to_list(),
            "run": self.model.account.run,
            "seed": f"{self._seed:032x}",
            "plan": self.plan.to_dict(),
            "class_names": self.dataset.class_names,
            "task": self.dataset.task,
            "image_shape": self.dataset.image_shape,
            "views_per_example": self.model.views.views_per_example,
            "pool_digest": pool.digest if pool else None,
            "warm_start": self._start,
            "class_weights": self._class_weights,
            "data_fingerprint": self._fingerprint,
            "software": self._software,
        }
        checkpoints.save(self.workdir.checkpoints, arrays, metadata)
        checkpoints.prune(self.workdir.checkpoints, self.config.run.keep_checkpoints)
