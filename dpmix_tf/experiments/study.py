"""The runs that an experiment's config asks for."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments.secret import FINGERPRINT
from dpmix_tf.files import write_text_atomic
from dpmix_tf.training.config import with_fields
from dpmix_tf.training.workdir import differences, read_json
from dpmix_tf.values import flatten
from dpmix_tf.views import count_views

# Trials are chosen by this value of an event: the accuracy of averaged weights.
CHOSEN_BY = "validation_accuracy_ema"
_FIRST_TUNING_SEED = 1_000_001
# These may change between calls on the same folder: they only add runs or text.
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
      seed: its number, shared by all arms, so that their differences are paired.
      trial: values of the tuned fields, by dotted name; () where nothing is tuned.
      tuning: whether it is a tuning trial, of which only the validation accuracy is
        read, rather than a test run.
    """

    arm: str
    epsilon: float
    seed: int
    trial: tuple[tuple[str, Any], ...]
    tuning: bool

    @property
    def name(self) -> str:
        """The path of its folder, relative to the experiment's."""
        parts = [
            "tuning" if self.tuning else "runs",
            self.arm,
            f"eps{exact(self.epsilon)}",
        ]
        parts += [f"{key.rpartition('.')[2]}={value}" for key, value in self.trial]
        return "/".join([*parts, f"seed{self.seed}"])


class Study:
    """An experiment: arms x epsilons x seeds, with or without tuning.

    Args:
      config: see experiments/config.py.
      arms: names of the arms to run; default: all.
      public_seeds: use the seed numbers themselves as seeds, so that anybody can repeat
        the runs, and none has a guarantee. By default the runner gives them secret
        seeds, see experiments/secret.py.

    Raises:
      DPMixError: there is nothing to run, the baseline is unknown, images have several
        labels, or the arms of equal_compute make different numbers of views.
    """

    def __init__(
        self,
        config: ConfigDict,
        arms: Sequence[str] | None = None,
        *,
        public_seeds: bool = False,
    ):
        self.config = config
        self.public_seeds = public_seeds
        self.known = tuple(dict.fromkeys(config.order))
        self.arms = self.known if arms is None else tuple(dict.fromkeys(arms))
        if set(self.known) != set(config.arms):
            raise DPMixError(
                f"order must name the arms {', '.join(config.arms)}; it names "
                f"{', '.join(self.known)}."
            )
        unknown = set(self.arms) - set(self.known)
        if unknown or not self.arms or not config.epsilons or config.seeds < 1:
            raise DPMixError(
                f"An experiment needs some of the arms {', '.join(self.known)}, an "
                f"epsilon and a seed; received: arms={list(self.arms)}, "
                f"epsilons={list(config.epsilons)}, seeds={config.seeds}."
            )
        for what, named in {
            "baseline": (config.baseline,),
            "equal_compute": config.equal_compute,
            "ablations": sum((tuple(arms) for _, arms in config.ablations), ()),
        }.items():
            if set(named) - set(self.known):
                raise DPMixError(
                    f"{what} must be among {', '.join(self.known)}; received: "
                    f"{', '.join(map(repr, named))}."
                )
        if config.base.privacy.trials != 1:
            raise DPMixError(
                "Experiments tune outside the guarantee. Leave out privacy.trials, or "
                "use bin/tune.py."
            )
        if config.base.report.noise is not None:
            raise DPMixError(
                "Experiments compare test accuracy without noise. Leave out "
                f"report.noise; received: {config.base.report.noise}."
            )
        if config.base.data.label_columns:
            raise DPMixError(
                "Experiments compare accuracy, of one label per image; received: "
                f"data.label_columns = {list(config.base.data.label_columns)}. Train "
                "each arm with bin/train.py, and compare what bin/evaluate.py says."
            )
        self.epsilons = tuple(float(epsilon) for epsilon in config.epsilons)
        self.seeds = tuple(range(1, config.seeds + 1))
        self.trials = self._combine_trials()
        self._refuse_what_cannot_be_shown()

    def _refuse_what_cannot_be_shown(self) -> None:
        """Checks the config before any run is trained, not after all of them."""
        if len(self.trials) > 1 and not self.config.base.data.validation_fraction:
            raise DPMixError(
                "Tuning needs validation examples: set base.data.validation_fraction "
                "above 0, or leave out tuning."
            )
        for field, arms in self.config.ablations:
            for arm in arms:
                value = self.fields(arm).get(field)
                if type(value) not in (int, float):
                    raise DPMixError(
                        f"ablations: arm {arm!r} has {field} = {value!r}; expected a "
                        "number for the x axis."
                    )
        counts = {
            arm: self.views_per_example(arm)
            for arm in self.config.equal_compute
            if arm in self.arms
        }
        if len(set(counts.values())) > 1:
            raise DPMixError(
                f"equal_compute: the arms make {counts} views per example. Adjust "
                "views.base and views.mixed to make them equal, or leave out an arm."
            )

    def fields(self, arm: str) -> dict[str, Any]:
        """An arm's config without seed, epsilon and tuned values, by dotted name."""
        return flatten(self.config.base.to_dict()) | self.changes(arm)

    def changes(self, arm: str) -> dict[str, Any]:
        """Fields of the base config that an arm sets, by dotted name."""
        return flatten(self.config.arms[arm].to_dict())

    def views_per_example(self, arm: str) -> int:
        """The number of views per example, K, of an arm."""
        return count_views(
            {
                name.removeprefix("views."): value
                for name, value in self.fields(arm).items()
                if name.startswith("views.")
            }
        )

    def _combine_trials(self) -> list[tuple[tuple[str, Any], ...]]:
        """All combinations of the values to tune over; [()] if there are none."""
        fields = flatten(self.config.tune.to_dict())
        for name, values in fields.items():
            if not isinstance(values, (tuple, list)) or not values:
                raise DPMixError(f"tune.{name} must be a tuple, received: {values!r}.")
        return [
            tuple(zip(fields, values, strict=True))
            for values in itertools.product(*fields.values())
        ]

    def tuning_runs(self, arm: str, epsilon: float) -> list[Run]:
        """The trials of an arm at an epsilon; [] where there is nothing to choose."""
        if len(self.trials) < 2:
            return []
        seeds = range(self.config.tuning_seeds)
        return [
            Run(arm, epsilon, _FIRST_TUNING_SEED + seed, trial, True)
            for trial in self.trials
            for seed in seeds
        ]

    def test_runs(self, arm: str, epsilon: float, trial) -> list[Run]:
        """The runs that are reported."""
        return [Run(arm, epsilon, seed, trial, False) for seed in self.seeds]

    def groups(self) -> Iterator[tuple[str, float]]:
        """Pairs (arm, epsilon) to be run, each tuned separately."""
        return ((arm, epsilon) for epsilon in self.epsilons for arm in self.arms)

    def all_groups(self) -> Iterator[tuple[str, float]]:
        """The same for all arms, because results of earlier calls are reported too."""
        return ((arm, epsilon) for epsilon in self.epsilons for arm in self.known)

    def config_of(self, run: Run) -> ConfigDict:
        """Returns the config that a run is trained with.

        Raises:
          DPMixError: the arm or a tuned field sets something that runs do not have.
        """
        config = self.run_config(run.arm, run.epsilon, run.seed, dict(run.trial))
        config.run.test = not run.tuning
        if self.config.refit and not run.tuning:
            config.data.validation_fraction = 0.0
        return config

    def run_config(
        self, arm: str, epsilon: float, seed: int, fields: Mapping[str, Any] = {}
    ) -> ConfigDict:
        """Returns the config of an arm with these values; see config_of."""
        changes = self.changes(arm) | dict(fields)
        changes |= {"privacy.epsilon": epsilon}
        changes["seed"] = seed if self.public_seeds else None
        return with_fields(self.config.base, changes, f"Arm {arm!r}")

    def claim(self, root: Path, fingerprint: str | None = None) -> None:
        """Claims the experiment's folder; refuses a folder of another experiment.

        Args:
          root: the folder.
          fingerprint: of the secret that seeds are derived from; None for public seeds.

        Raises:
          DPMixError: the folder's runs were made with another config.
        """
        mine = json.loads(self.config.to_json()) | {FINGERPRINT: fingerprint}
        path = root / "experiment.json"
        if path.exists():
            theirs = read_json(path)
            arms = theirs["arms"].keys() & mine["arms"].keys()
            lines = [f"base.{x}" for x in differences(theirs["base"], mine["base"])]
            before, now = (
                {k: v for k, v in side.items() if k not in (*_OPEN, "base", "arms")}
                | {"arms": {arm: side["arms"][arm] for arm in arms}}
                for side in (theirs, mine)
            )
            lines += differences(before, now)
            if lines:
                raise DPMixError(
                    f"{root} holds another experiment:\n"
                    + "\n".join(f"  {line}" for line in lines)
                    + "\nUse another --workdir, or the same settings to resume."
                )
            mine["arms"] = theirs["arms"] | mine["arms"]
        write_text_atomic(path, json.dumps(mine, indent=2) + "\n")


def exact(epsilon: float) -> str:
    """Formats a budget as it was given, never rounded: 8, 0.5, 1.0000001."""
    return repr(float(epsilon)).removesuffix(".0")
