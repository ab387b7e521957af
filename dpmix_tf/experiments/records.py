"""What runs of an experiment gave: the lines of results.jsonl, and what they cost."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments.study import CHOSEN_BY, Run, Study
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training.workdir import read_json

Event = Mapping[str, Any]  # of metrics.jsonl


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """The record of a run that made all its updates.

    Attributes:
      run: which one.
      final: the last event of its metrics.jsonl.
      curve: the events before that.
      views_per_example: K of its arm.
      spent: its privacy.json.
      config: its config.json.
      software: the versions it was trained with.
    """

    run: Run
    final: Event
    curve: tuple[Event, ...]
    views_per_example: int
    spent: Mapping[str, Any]
    config: Mapping[str, Any]
    software: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """Test accuracy of the averaged weights, in [0, 1]; of a test run only."""
        return self.final["test_accuracy_ema"]

    @property
    def last_accuracy(self) -> float:
        """Test accuracy of the last update's weights."""
        return self.final["test_accuracy"]

    @property
    def accuracy_by_class(self) -> list[float | None] | None:
        """`accuracy` by class; None for a class without test examples."""
        return self.final.get("test_accuracy_ema_by_class")

    @property
    def validation(self) -> dict[int, float]:
        """Validation accuracy of the averaged weights, by number of updates."""
        return {
            event["updates"]: event[CHOSEN_BY]
            for event in self.curve
            if CHOSEN_BY in event
        }

    @property
    def clipped(self) -> float | None:
        """Gradients longer than the clip norm, per example of a batch; private.

        Mean over the recorded events; None without run.private_metrics.
        """
        name = "private_clipped"
        found = [event[name] for event in self.curve if event.get(name) is not None]
        return statistics.mean(found) if found else None

    @property
    def score(self) -> float:
        """The accuracy it is judged by: of a trial in validation, else in the test."""
        return [*self.validation.values()][-1] if self.run.tuning else self.accuracy

    @property
    def plan(self) -> PrivacyPlan:
        """The plan it was trained under."""
        names = {field.name for field in dataclasses.fields(PrivacyPlan)}
        values = {name: value for name, value in self.spent.items() if name in names}
        return PrivacyPlan(**values | {"updates": self.spent["planned_updates"]})

    def to_json(self) -> str:
        """Returns its line of results.jsonl."""
        return json.dumps(
            _about(self.run)
            | {
                "status": "done",
                "final": self.final,
                "curve": self.curve,
                "views_per_example": self.views_per_example,
                "plan": self.spent,
                "config": self.config,
                "software": self.software,
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    """The record of a run that failed, and why."""

    run: Run
    error: str

    def to_json(self) -> str:
        """Returns its line of results.jsonl."""
        return json.dumps(_about(self.run) | {"status": "failed", "error": self.error})


Record = Finished | Failed


def from_json(line: str) -> Record:
    """Returns the record that a line of results.jsonl holds.

    Raises:
      DPMixError: it holds none.
    """
    try:
        values = json.loads(line)
        run = Run(
            arm=values["arm"],
            epsilon=values["epsilon"],
            seed=values["seed"],
            trial=tuple(values["tuned"].items()),
            tuning=values["tuning"],
        )
        if values["status"] == "failed":
            return Failed(run=run, error=values["error"])
        return Finished(
            run=run,
            final=values["final"],
            curve=tuple(values["curve"]),
            views_per_example=values["views_per_example"],
            spent=values["plan"],
            config=values["config"],
            software=values["software"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DPMixError(
            f"Not a line of results.jsonl: {line[:60]!r} ({error!r}). Restore the "
            "file, or rerun bin/experiment.py, which writes it anew from the runs."
        ) from error


def _about(run: Run) -> dict[str, Any]:
    return {
        "arm": run.arm,
        "epsilon": run.epsilon,
        "seed": run.seed,
        "tuning": run.tuning,
        "tuned": dict(run.trial),
    }


class Results:
    """An experiment's records, by arm and epsilon.

    Attributes:
      study: the experiment.
      failed: the runs that failed.
      trials: the finished tuning trials.
      runs: the finished test runs.
      arms: those with a finished test run, in the config's order.
      epsilons: likewise.
    """

    def __init__(self, study: Study, records: Iterable[Record]):
        self.study = study
        records = list(records)
        self.failed = [each for each in records if isinstance(each, Failed)]
        done = [each for each in records if isinstance(each, Finished)]
        self.trials = [each for each in done if each.run.tuning]
        self.runs = [each for each in done if not each.run.tuning]
        arms = {each.run.arm for each in self.runs}
        epsilons = {each.run.epsilon for each in self.runs}
        self.arms = [arm for arm in study.known if arm in arms]
        self.epsilons = [each for each in study.epsilons if each in epsilons]

    def of(self, arm: str, epsilon: float) -> list[Finished]:
        """The test runs of an arm at an epsilon, by seed."""
        found = [
            each
            for each in self.runs
            if (each.run.arm, each.run.epsilon) == (arm, epsilon)
        ]
        return sorted(found, key=lambda each: each.run.seed)

    def of_arm(self, arm: str) -> list[Finished]:
        """The test runs of an arm."""
        return [each for each in self.runs if each.run.arm == arm]

    def percents(self, arm: str, epsilon: float) -> list[float]:
        """Test accuracies of the averaged weights in percent, by seed."""
        return [100 * each.accuracy for each in self.of(arm, epsilon)]

    @property
    def software(self) -> list[dict[str, Any]]:
        """The different versions that the test runs were made with, in order."""
        found = {tuple(sorted(run.software.items(), key=str)) for run in self.runs}
        return [dict(one) for one in sorted(found)]

    def microbatch(self, arm: str) -> int | None:
        """Examples that an arm clips as one, if it mixes different ones."""
        return self.study.fields(arm)["views.microbatch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of training, summed over all processes that were not killed.

    Attributes:
      seconds: includes evaluations.
      updates: made in that time.
    """

    seconds: float = 0.0
    updates: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            seconds=self.seconds + other.seconds, updates=self.updates + other.updates
        )

    @classmethod
    def read(cls, folder: Path) -> "Cost":
        """Reads a run's cost; nothing if it is not on record."""
        path = folder / "cost.json"
        return cls(**read_json(path)) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        """Writes a run's cost into its folder."""
        write_text_atomic(folder / "cost.json", json.dumps(dataclasses.asdict(self)))
