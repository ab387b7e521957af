"""Tuning inside the guarantee: the best of a drawn number of private trials.

See privacy/selection.py for why and what it costs.
"""

import contextlib
import dataclasses
import gc
import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from absl import logging
from ml_collections import ConfigDict

from dpmix_tf.data import Dataset, ExampleSource, load_dataset
from dpmix_tf.errors import DivergedError, DPMixError
from dpmix_tf.files import (
    local_path,
    lock_file,
    write_atomic,
    write_folder_atomic,
    write_text_atomic,
)
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.plan import EXAMPLE
from dpmix_tf.privacy.selection import check_distribution
from dpmix_tf.privacy.trials import draw_trials, noised_score, score_noise_for
from dpmix_tf.training.build import build_model, make_plan, pin_weights
from dpmix_tf.training.config import with_fields
from dpmix_tf.training.evaluation import record_scores
from dpmix_tf.training.trainer import Trainer
from dpmix_tf.training.workdir import differences, read_json

BEST = "best"  # the folder of the run that was chosen
_DIVERGED = -1e9  # score of a trial whose weights are no longer finite
# Other data, or other ways to run, are not settings to choose by a score.
_FIXED = ("data", "run", "seed", "pool", "report", "card")
# The cost of a trial must not depend on which candidate it draws.
_FREE = ("clip_norm", "clipping", "gamma")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """The outcome of tuning; all of it is covered by epsilon, but for test accuracy.

    Attributes:
      values: the chosen candidate, by dotted name of the config.
      score: of the chosen trial on validation records, with noise, in [0, 1].
      folder: of the chosen run, like any other run's.
      final: its final event, see Trainer.run.
    """

    values: dict[str, Any]
    score: float
    folder: Path
    final: dict[str, Any]


class Tuner:
    """Trains a drawn number of trials with drawn candidates, and keeps the best.

    The workdir holds `tuning.json` (SECRET: how many trials were drawn), `trials/`
    (SECRET: scores, and the run of the best trial so far), `cache/` (SECRET: features)
    and at the end `best/`, a run like any other: what may be published of a run may be
    published of it, and nothing in it tells how many trials there were. Killed
    anywhere, a Tuner with the same arguments resumes.

    Args:
      config: see training/config.py; `privacy.epsilon` is that of the whole.
      workdir: made if missing.
      choices: values to choose among, by dotted name of the config. A trial draws one
        combination.
      trials: mean number of trials, above 1.
      distribution: of the number, see privacy.selection.DISTRIBUTIONS.
      public_validation: take validation records as public: scores have no noise, and
        nothing is claimed for these records.
      dataset: what config.data describes, if it is loaded already.

    Raises:
      DPMixError: an argument, or one of the candidates, is refused; or the workdir
        holds something else, or is in use. Before anything is trained.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | Path,
        choices: Mapping[str, Sequence[Any]],
        *,
        trials: float = 6.0,
        distribution: str = "poisson",
        public_validation: bool = False,
        dataset: Dataset | None = None,
    ):
        self.workdir = local_path(workdir, "The workdir")
        self._choices = {name: list(values) for name, values in choices.items()}
        self._config = pin_weights(self._with_choice(config, trials, distribution))
        self._dataset = dataset or load_dataset(**self._config.data.to_dict())
        self._validation = self._check_validation()
        if not public_validation:
            privacy = self._config.privacy
            privacy.score_noise = score_noise_for(
                privacy.epsilon, privacy.delta, trials, distribution
            )
        self._candidates = self._combine()
        self._lock = self._open()
        try:
            self._plan = self._check_candidates()
            assert self._plan.choice is not None
            self._choice = self._plan.choice
            self._refuse_another_tuning()
        except BaseException:
            self._lock.close()
            raise

    def _with_choice(
        self, config: ConfigDict, trials: float, distribution: str
    ) -> ConfigDict:
        """Returns the config of a trial, but for its candidate and its score's noise.

        Raises:
          DPMixError: the config does not go with tuning.
        """
        config = config.copy_and_resolve_references()
        if config.seed is not None:
            raise DPMixError(
                "Each trial draws a secret seed of its own. Leave out config.seed."
            )
        if config.run.private_metrics:
            raise DPMixError(
                "run.private_metrics writes numbers without noise, which epsilon does "
                "not cover. Leave it out."
            )
        if config.privacy.epsilon is None or config.privacy.class_counts_noise:
            raise DPMixError(
                "Tuning finds the noise for all trials together: give privacy.epsilon, "
                "and neither privacy.noise_multiplier nor privacy.class_counts_noise."
            )
        if not (math.isfinite(trials) and trials > 1):
            raise DPMixError(f"trials must be above 1, received: {trials}.")
        check_distribution(distribution)
        config.privacy.trials = float(trials)
        config.privacy.trials_distribution = distribution
        config.privacy.accountant = "rdp"
        if config.run.cache_dir is None:  # not in the folder of the best
            config.run.cache_dir = str(self.workdir / "cache")
        return config

    def _check_validation(self) -> ExampleSource:
        """Returns the validation records, if there are any and they can be scored."""
        validation, train = self._dataset.validation, self._dataset.train
        if validation is None or not len(validation.examples):
            raise DPMixError(
                "Trials are scored on validation records, and there are none: set "
                "data.validation_fraction above 0."
            )
        if train.record != EXAMPLE and validation.people is None:
            raise DPMixError(
                "The training records are people, but it is not known whose the "
                "validation images are. Give a PeopleSource, or a table with "
                "data.person."
            )
        return validation

    def _combine(self) -> list[dict[str, Any]]:
        for name, values in self._choices.items():
            part, _, field = name.partition(".")
            if part in _FIXED or (part == "privacy" and field not in _FREE):
                raise DPMixError(
                    f"{name} cannot be tuned: a candidate may not change "
                    f"{', '.join(_FIXED)}, nor of privacy anything but "
                    f"{', '.join(_FREE)}."
                )
            if not values:
                raise DPMixError(f"There is no value to try for {name}.")
        found = [
            dict(zip(self._choices, values, strict=True))
            for values in itertools.product(*self._choices.values())
        ]
        if len(found) < 2:
            raise DPMixError(
                "Tuning needs two values of a setting or more; received: "
                f"{self._choices}. With one, use bin/train.py."
            )
        return found

    def _open(self):
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.workdir.chmod(0o700)
            return lock_file(self.workdir / ".lock", wait=False)
        except BlockingIOError as error:
            raise DPMixError(f"Another process is tuning in {self.workdir}.") from error
        except OSError as error:
            raise DPMixError(
                f"Cannot write to the workdir {self.workdir}: {error.strerror}."
            ) from error

    def _refuse_another_tuning(self) -> None:
        path = self.workdir / "tuning.json"
        if not path.exists():
            return
        theirs, mine = read_json(path), self._about()
        lines = differences(theirs["config"], mine["config"])
        lines += [
            f"{name}: {theirs[name]} there, {mine[name]} here"
            for name in mine
            if name != "config" and theirs[name] != mine[name]
        ]
        if lines:
            raise DPMixError(
                f"{self.workdir} holds another tuning:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nUse another --workdir, or the same settings to resume."
            )

    def _about(self) -> dict[str, Any]:
        # Other data would make other trials, and a record that one has trained on
        # could be one that another is scored on.
        about = {
            "config": json.loads(self._config.to_json()),
            "choices": self._choices,
            "plan": self._plan.to_dict(),
            "training data": self._dataset.train.fingerprint(),
            "validation data": self._validation.fingerprint(),
            "pools": self._pools,
        }
        return json.loads(json.dumps(about))  # as it is read again: lists, no tuples

    def _config_of(self, candidate: Mapping[str, Any]) -> ConfigDict:
        return with_fields(self._config, candidate, "A candidate")

    def _check_candidates(self) -> PrivacyPlan:
        """Builds each candidate once, so that a bad one is refused before the budget.

        Raises:
          DPMixError: one cannot be built.
        """
        train, plans = self._dataset.train, []
        self._pools: list[str | None] = []
        for candidate in self._candidates:
            config = self._config_of(candidate)
            plan = make_plan(config, len(train), train.record)
            seed = randomness.fresh_seed()
            model = build_model(
                *(config, self._dataset, plan, seed), cache_dir=config.run.cache_dir
            )
            pool = model.views.pool
            self._pools.append(pool.digest if pool else None)
            keras.backend.clear_session()
            plans.append(plan)
            if plan.part() != plans[0].part():
                raise DPMixError(f"{candidate} changes what a trial costs.")
        return plans[0]

    def run(self) -> Tuned:
        """Trains what is left of the trials, and measures the best one on test images.

        Raises:
          KeyboardInterrupt: stopped by a signal; the same call resumes.
          DPMixError: no trial was drawn, or a file cannot be written.
        """
        with self._lock:
            drawn = self._draw()
            for number, index in enumerate(drawn, start=1):
                self._score(number, self._candidates[index])
                self._keep_the_best(number)
            return self._publish(drawn)

    def _draw(self) -> list[int]:
        """The candidate of each trial, drawn once."""
        path = self.workdir / "tuning.json"
        if not path.exists():
            drawn = draw_trials(self._choice, len(self._candidates))
            about = self._about() | {"secret": True, "trials": drawn}
            _write_secret(path, about)
        drawn = read_json(path)["trials"]
        if not drawn:
            raise DPMixError(
                f"No trial was drawn, which a {self._plan.trials_distribution} "
                f"distribution with mean {self._plan.trials:g} does with probability "
                f"{math.exp(-self._plan.trials):.2g}: nothing was trained. The "
                "guarantee covers this outcome; starting again in another --workdir "
                "is a second release, and counts as one."
            )
        return drawn

    def _folder(self, number: int) -> Path:
        return self.workdir / "trials" / f"{number:04}"

    def _score(self, number: int, candidate: dict[str, Any]) -> None:
        """Trains and scores one trial, unless that is done."""
        folder = self._folder(number)
        if _score_file(folder).exists():
            return
        logging.info("Trial %d: %s", number, candidate)
        config = self._config_of(candidate)
        trainer = Trainer(config, folder, dataset=self._dataset, trial=True)
        noised, count = _DIVERGED, 0
        # Weights that are no longer finite are seen from what is released.
        with contextlib.suppress(DivergedError):
            found = trainer.train_and_score(self._validation)
            record = self._dataset.train.record
            scores = record_scores(found, self._validation, record)
            count = len(scores)
            noised = noised_score(scores, self._choice, count)
        _write_secret(_score_file(folder), {"score": noised, "records": count})
        del trainer
        keras.backend.clear_session()
        gc.collect()

    def _keep_the_best(self, scored: int) -> int:
        """Deletes all trials so far but the best, which is returned."""
        scores = {
            number: read_json(_score_file(self._folder(number)))["score"]
            for number in range(1, scored + 1)
        }
        best = max(scores, key=lambda number: scores[number])
        for number in scores.keys() - {best}:
            shutil.rmtree(self._folder(number), ignore_errors=True)
        return best

    def _publish(self, drawn: list[int]) -> Tuned:
        """Moves the best trial's run to `best`, and measures it on the test set."""
        best = self._keep_the_best(len(drawn))
        values = self._candidates[drawn[best - 1]]
        folder, found = self.workdir / BEST, read_json(_score_file(self._folder(best)))
        if found["score"] == _DIVERGED:
            raise DivergedError(
                f"Every trial diverged, at the best {values}: nothing can be published"
                f", and epsilon = {self._plan.epsilon():.3f} is spent. Try lower rates."
            )
        if not folder.exists():
            write_folder_atomic(folder, lambda new: _copy(self._folder(best), new))
        shutil.rmtree(self._folder(best), ignore_errors=True)
        # Without validation records: their accuracy would be written without noise.
        dataset = dataclasses.replace(self._dataset, validation=None)
        config = self._config_of(values)
        final = Trainer(config, folder, dataset=dataset, trial=True).run()
        score = min(max(found["score"], 0.0), 1.0)
        about = {
            "values": values,
            "validation_score": score,
            "validation_records": found["records"],
            "score_noise": self._plan.score_noise,
            "choices": self._choices,
            "trials": self._plan.trials,
            "trials_distribution": self._plan.trials_distribution,
        }
        write_text_atomic(folder / "tuning.json", json.dumps(about, indent=2) + "\n")
        return Tuned(values=values, score=score, folder=folder, final=final)


def _copy(run: Path, folder: Path) -> None:
    """Copies a run: new files, whose dates do not tell when the trial was trained."""
    for name in ("config.json", "privacy.json"):
        shutil.copyfile(run / name, folder / name)
    (folder / "checkpoints").mkdir(mode=0o700)
    for path in (run / "checkpoints").glob("*.npz"):
        shutil.copyfile(path, folder / "checkpoints" / path.name)


def _score_file(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"


def _write_secret(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()), private=True)
