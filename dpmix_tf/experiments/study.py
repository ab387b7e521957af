"""The runs that an experiment's config asks for."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_text_atomic
from dpmix_tf.training.workdir import differences, read_json
from dpmix_tf.views import make_views

_FIRST_TUNING_SEED = 1_000_001
# May change between two calls on the same folder: they add runs, or words.
_OPEN = (
    "title",
    "order",
    "epsilons",
    "seeds",
    "baseline",
    "equal_compute",
    "ablations",
    "published",
    "class_accuracy",
    "show_views",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of an experiment.

    Attributes:
      arm: its name in the config.
      epsilon: the budget.
      seed: shared by all arms: their differences are paired.
      trial: values of the tuned fields, by dotted name; () where nothing is tuned.
      tuning: whether it is one of the trials, which only validation accuracy is read
        of, or one of the test runs.
    """

    arm: str
    epsilon: float
    seed: int
    trial: tuple[tuple[str, Any], ...]
    tuning: bool

    @property
    def name(self) -> str:
        """Of its folder, below the experiment's."""
        parts = ["tuning" if self.tuning else "runs", self.arm, f"eps{self.epsilon:g}"]
        if self.tuning:
            parts += [f"{key.rpartition('.')[2]}={value}" for key, value in self.trial]
        return "/".join([*parts, f"seed{self.seed}"])


class Study:
    """An experiment: arms x epsilons x seeds, tuned or not.

    Args:
      config: see experiments/config.py.
      arms: names of those to run; default all.

    Raises:
      DPMixError: nothing to run, an unknown baseline, or unequal compute.
    """

    def __init__(self, config: ConfigDict, arms: tuple[str, ...] | None = None):
        self.config = config
        known = tuple(arm for arm in config.order if arm in config.arms)
        self.arms = known if arms is None else tuple(arms)
        unknown = [arm for arm in self.arms if arm not in known]
        if unknown or not self.arms or not config.epsilons or config.seeds < 1:
            raise DPMixError(
                f"An experiment needs some of the arms {', '.join(known)}, an epsilon "
                f"and a seed; received: arms={list(self.arms)}, "
                f"epsilons={list(config.epsilons)}, seeds={config.seeds}."
            )
        if config.baseline not in known:
            raise DPMixError(
                f"baseline must be one of {', '.join(known)}; received: "
                f"{config.baseline!r}."
            )
        self.epsilons = tuple(float(epsilon) for epsilon in config.epsilons)
        self.seeds = tuple(range(1, config.seeds + 1))
        self._refuse_unequal_compute()

    def _refuse_unequal_compute(self) -> None:
        counts = {
            arm: self.views_per_example(arm)
            for arm in self.config.equal_compute
            if arm in self.arms
        }
        if len(set(counts.values())) > 1:
            raise DPMixError(
                f"equal_compute: the arms make {counts} views an example. Make them "
                "equal by views.base and views.mixed, or leave an arm out."
            )

    def views_per_example(self, arm: str) -> int:
        """K of an arm."""
        views = dict(self.run_config(arm, 1.0, 1).views)
        if views["microbatch"] is not None:
            return 1
        return make_views(views | {"synthetic": 0}, None).views_per_example + (
            0 if views["only_mixed"] else views["synthetic"]
        )

    def trials(self) -> list[tuple[tuple[str, Any], ...]]:
        """All combinations of the values to tune over; one empty one for none."""
        fields = _flatten(self.config.tune.to_dict())
        return [
            tuple(zip(fields, values, strict=True))
            for values in itertools.product(*(tuple(v) for v in fields.values()))
        ]

    def tuning_runs(self, arm: str, epsilon: float) -> list[Run]:
        """The trials of an arm at an epsilon; none where there is nothing to choose."""
        if len(self.trials()) < 2:
            return []
        seeds = range(self.config.tuning_seeds)
        return [
            Run(arm, epsilon, _FIRST_TUNING_SEED + seed, trial, True)
            for trial in self.trials()
            for seed in seeds
        ]

    def test_runs(self, arm: str, epsilon: float, trial) -> list[Run]:
        """The runs that are reported."""
        return [Run(arm, epsilon, seed, trial, False) for seed in self.seeds]

    def groups(self) -> Iterator[tuple[str, float]]:
        """(arm, epsilon), each tuned for itself."""
        for epsilon in self.epsilons:
            for arm in self.arms:
                yield arm, epsilon

    def config_of(self, run: Run) -> ConfigDict:
        """The config that a run is trained by.

        Raises:
          DPMixError: the arm or a tuned field names something that runs do not have.
        """
        return self.run_config(run.arm, run.epsilon, run.seed, dict(run.trial))

    def run_config(
        self, arm: str, epsilon: float, seed: int, fields: Mapping[str, Any] = {}
    ) -> ConfigDict:
        """See config_of."""
        config = self.config.base.copy_and_resolve_references()
        config.lock()
        changes = _flatten(self.config.arms[arm].to_dict()) | dict(fields)
        changes |= {"privacy.epsilon": epsilon, "seed": seed}
        for name, value in changes.items():
            *path, last = name.split(".")
            part = config
            try:
                for key in path:
                    part = part[key]
                if part is config.network or part is config.optimizer:
                    with part.unlocked():
                        part[last] = value
                else:
                    part[last] = value
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DPMixError(
                    f"Arm {arm!r} sets {name} = {value!r}: {str(error)[:300]}"
                ) from error
        return config

    def claim(self, root: Path) -> None:
        """Takes the experiment's folder; refuses one of another experiment.

        Raises:
          DPMixError: the folder's runs were made by another config.
        """
        mine = json.loads(self.config.to_json())
        path = root / "experiment.json"
        if path.exists():
            theirs = read_json(path)
            arms = theirs["arms"].keys() & mine["arms"].keys()
            lines = differences(
                *(
                    {k: v for k, v in side.items() if k not in (*_OPEN, "arms")}
                    | {"arms": {arm: side["arms"][arm] for arm in arms}}
                    for side in (theirs, mine)
                )
            )
            if lines:
                raise DPMixError(
                    f"{root} holds another experiment:\n"
                    + "\n".join(f"  {line}" for line in lines)
                    + "\nUse another --workdir, or the same settings to go on."
                )
            mine["arms"] = theirs["arms"] | mine["arms"]
        write_text_atomic(path, json.dumps(mine, indent=2) + "\n")


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
