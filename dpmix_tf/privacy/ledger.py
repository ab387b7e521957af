"""What a network was trained under: plans and their updates. It only ever grows.

A `Ledger` is an immutable value with one entry per training run. Joining two ledgers
keeps the larger count of each run, so that saving and loading, in whatever order, never
lowers a count. The training history of variables is recorded on the variables
themselves, so that whatever is built from them later (a new model, a larger network,
the same layers partly frozen) finds it. A live model adds to it through an `Account`,
see privacy/account.py.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import accounting
from dpmix_tf.privacy.plan import PrivacyPlan

# Where a seed comes from. Only a secret seed carries a guarantee.
SYSTEM = "system"  # drawn from the operating system for one run
SHARED = "shared"  # derived from such a draw, the same for several runs
CHOSEN = "chosen"  # by the user: whoever knows or guesses it can subtract the noise

# Conditions of a run, which its statement has to mention.
CHOSEN_SEED = "chosen_seed"
SHARED_SEED = "shared_seed"
UNCHECKED_SAMPLING = "unchecked_sampling"
PUBLIC_POOL = "public_pool"
PUBLIC_WEIGHTS = "public_weights"
WARM_START = "warm_start"
PRIVATE_METRICS = "private_metrics"
CLASS_WEIGHTS = "class_weights"
CLASS_COUNTS = "class_counts"  # noised, see privacy.counts
CONDITIONS = (
    CHOSEN_SEED,
    SHARED_SEED,
    UNCHECKED_SAMPLING,
    PUBLIC_POOL,
    PUBLIC_WEIGHTS,
    WARM_START,
    PRIVATE_METRICS,
    CLASS_WEIGHTS,
    CLASS_COUNTS,
)

_ATTRIBUTE = "_dpmix_tf_ledger"  # of a variable: run -> Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Updates that one training run made under one plan.

    Attributes:
      run: random name; distinguishes runs under equal plans.
      plan: the plan under which they were made.
      updates: at least this many were made; 0 or more.
      conditions: which of CONDITIONS hold for the run.
    """

    run: str
    plan: PrivacyPlan
    updates: int
    conditions: frozenset[str] = frozenset()

    def entry(self) -> "Entry":
        """Returns itself; an Account returns its current entry."""
        return self


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Everything that was spent on a network, in the order in which its runs began.

    Formal guarantee: the network's weights are (epsilon(delta), delta)-differentially
    private, whichever updates' weights are published, provided that every entry's
    updates were made by `PrivateStep` under its plan.

    Attributes:
      entries: one per run.
    """

    entries: tuple[Entry, ...] = ()

    @classmethod
    def planned(
        cls, plan: PrivacyPlan, updates: int | None = None, conditions=()
    ) -> "Ledger":
        """Returns the ledger of one run of `plan`, by default with all its updates."""
        updates = plan.updates if updates is None else int(updates)
        entry = Entry(
            run="planned",
            plan=plan,
            updates=updates,
            conditions=frozenset(conditions),
        )
        return cls((entry,))

    @classmethod
    def of(cls, variables: Iterable[Any]) -> "Ledger":
        """Returns what is recorded on Keras variables."""
        found = [
            record.entry()
            for variable in variables
            for record in records_of(variable).values()
        ]
        return cls().joined(cls(tuple(found)))

    def joined(self, other: "Ledger") -> "Ledger":
        """Returns the smallest ledger that covers both."""
        entries: dict[str, Entry] = {}
        for entry in (*self.entries, *other.entries):
            known = entries.get(entry.run, entry)
            entries[entry.run] = dataclasses.replace(
                entry,
                updates=max(known.updates, entry.updates),
                conditions=known.conditions | entry.conditions,
            )
        return Ledger(tuple(entries.values()))

    @property
    def conditions(self) -> frozenset[str]:
        """The conditions that hold for at least one of the runs."""
        return frozenset().union(*(entry.conditions for entry in self.entries))

    def by_plan(self) -> dict[PrivacyPlan, int]:
        """Updates made under each plan."""
        found: dict[PrivacyPlan, int] = {}
        for entry in self.entries:
            found[entry.plan] = found.get(entry.plan, 0) + entry.updates
        return found

    def updates(self, plan: PrivacyPlan) -> int:
        """Updates made under `plan`, by any run."""
        return self.by_plan().get(plan, 0)

    def epsilon(
        self, delta: float, accountant: str = "pld", group_size: int = 1
    ) -> float:
        """Epsilon of all entries together, at one delta (adaptive composition).

        Args:
          delta: in (0, 1), for all entries together.
          accountant: "pld" or "rdp"; "pld" for groups.
          group_size: how many records are added or removed together.

        Raises:
          DPMixError: some updates protected an example and others a person.
        """
        self.refuse_mixed_records()
        return accounting.composed_epsilon(
            self.parts(), float(delta), accountant, group_size
        )

    def parts(self) -> tuple[accounting.Part, ...]:
        """What was done to the records: by plan, and by run where runs were chosen.

        Of equal plans, two choices among trials are two releases; the updates of other
        runs are one series.
        """
        found = []
        for plan, updates in self.by_plan().items():
            runs = [e for e in self.entries if e.plan == plan and e.updates]
            times = len(runs) if plan.choice else min(updates, 1)
            found += times * [plan.part(updates)]
        return tuple(found)

    def without_counts(self) -> "Ledger":
        """Returns the entries of trainings, without releases of class counts."""
        rest = (e for e in self.entries if CLASS_COUNTS not in e.conditions)
        return Ledger(tuple(rest))

    def refuse_mixed_records(self, plan: PrivacyPlan | None = None) -> None:
        """Raises DPMixError if updates, and a plan's to come, protect unlike things.

        What was spent on single images bounds nothing about a person who has several.
        """
        plans = [one for one, updates in self.by_plan().items() if updates]
        records = sorted({one.record for one in [*plans, *([plan] if plan else [])]})
        if len(records) > 1:
            raise DPMixError(
                "The network was trained under plans that protect different things, "
                f"one {' and one '.join(records)}: together they have no epsilon. "
                "Start from weights that were not trained privately, or keep to one."
            )

    def to_list(self) -> list[dict[str, Any]]:
        """Returns the entries as JSON-able values; empty ones are left out."""
        return [
            {
                "run": entry.run,
                "plan": entry.plan.to_dict(),
                "updates": entry.updates,
                "conditions": sorted(entry.conditions),
            }
            for entry in self.entries
            if entry.updates or entry.conditions
        ]

    @classmethod
    def from_list(cls, entries: Any, where: str) -> "Ledger":
        """Makes the ledger that `to_list` described.

        Raises:
          DPMixError: the entries do not describe a ledger. The message names their
            file by `where`.
        """
        try:
            made = [
                Entry(
                    run=str(entry["run"]),
                    plan=PrivacyPlan(**entry["plan"]),
                    updates=int(entry["updates"]),
                    conditions=frozenset(entry["conditions"]),
                )
                for entry in entries
            ]
            if any(entry.updates < 0 for entry in made):
                raise ValueError("updates below 0")
        except (TypeError, KeyError, ValueError) as error:
            raise DPMixError(
                f"{where} does not say what was spent on its weights: {error}. It was "
                "written by another version of dpmix_tf, or it is damaged."
            ) from error
        return cls(tuple(made))


class Record(Protocol):
    """What variables were trained under: an Entry, or an Account that still grows."""

    def entry(self) -> Entry:
        """Returns its current entry."""


def records_of(variable: Any) -> dict[str, Record]:
    """Returns one Keras variable's records by run, to be read or added to."""
    if not hasattr(variable, _ATTRIBUTE):
        setattr(variable, _ATTRIBUTE, {})
    return getattr(variable, _ATTRIBUTE)


def record_history(variables: Iterable[Any], history: Ledger) -> None:
    """Records on Keras variables what they were trained under elsewhere.

    Every DPMixModel built from them afterwards counts it.
    """
    for variable in variables:
        records = records_of(variable)
        for entry in history.entries:
            known = records.get(entry.run, entry)
            if isinstance(known, Entry):
                joined = Ledger((known,)).joined(Ledger((entry,)))
                (records[entry.run],) = joined.entries
