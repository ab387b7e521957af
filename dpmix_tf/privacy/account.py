"""Where a live model charges its updates, before it applies them.

An `Account` is not a Keras weight: setting, loading or restoring weights does not
change it, and neither do callbacks or checkpoints. It is the only place that keeps the
number of the next update, by which noise and views are keyed.
"""

import secrets
from typing import Any

import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.ledger import Entry, Ledger, record_history, records_of
from dpmix_tf.privacy.plan import PrivacyPlan


class Account:
    """Where models charge the updates that they make under one plan.

    Args:
      variables: the network's Keras variables. Earlier training of these variables
        counts; if it was under an equal plan, its count is continued.
      plan: no more than its number of updates can be charged.
    """

    def __init__(self, variables: list[Any], plan: PrivacyPlan):
        self.plan = plan
        self._variables = variables
        self._run = secrets.token_hex(8)
        self._conditions: set[str] = set()
        self._elsewhere = 0  # updates of the plan that other runs have made
        # The number of the plan's next update, for the graph; never saved.
        self._next = tf.Variable(
            0,
            trainable=False,
            dtype=tf.int64,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name="next_update",
        )
        self.recount()
        for variable in variables:
            records_of(variable)[self._run] = self

    @classmethod
    def open(cls, variables: list[Any], plan: PrivacyPlan) -> "Account":
        """Returns the account that these variables have under `plan`, or a new one."""
        found = {
            record._run: record
            for variable in variables
            for record in records_of(variable).values()
            if isinstance(record, Account) and record.plan == plan
        }
        if len(found) != 1:
            return cls(variables, plan)
        (account,) = found.values()
        account._variables = list(
            {id(v): v for v in (*account._variables, *variables)}.values()
        )
        for variable in variables:
            records_of(variable)[account._run] = account
        account.recount()
        return account

    @property
    def next(self) -> int:
        """The number of the plan's next update, from 0: also how many are charged."""
        return int(self._next.numpy())

    @property
    def ledger(self) -> Ledger:
        """Everything that the variables were trained under, by this run or others."""
        return Ledger.of(self._variables)

    def entry(self) -> Entry:
        """What this account has charged."""
        return Entry(
            run=self._run,
            plan=self.plan,
            updates=self.next - self._elsewhere,
            conditions=frozenset(self._conditions),
        )

    @property
    def conditions(self) -> frozenset[str]:
        """The conditions noted so far."""
        return frozenset(self._conditions)

    def note(self, *conditions: str) -> None:
        """Notes permanently that these conditions hold."""
        self._conditions.update(conditions)

    def check(self, update: tf.Tensor | None) -> tf.Tensor:
        """Returns the number of the update to make now; runs in the graph.

        Args:
          update: int64 scalar, the update for which the batch was drawn; None for a
            batch without a number, which is taken as the next update's.

        Raises:
          tf.errors.InvalidArgumentError: when run, if the plan's updates are spent, or
            if `update` is not the next one: its noise may already have been used.
        """
        following = tf.identity(self._next)
        checks = [
            tf.debugging.Assert(
                following < self.plan.updates,
                [f"The plan's {self.plan.updates} updates are spent: training stops."],
            )
        ]
        if update is not None:
            checks.append(
                tf.debugging.Assert(
                    tf.equal(update, following),
                    [
                        "The batch is of update",
                        update,
                        "but the next update is",
                        following,
                    ],
                )
            )
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.identity(following)

    def charge(self, update: tf.Tensor) -> tf.Tensor:
        """Charges the update that `check` returned; runs in the graph.

        Returns:
          `update`, for whatever may be done only once it is charged.
        """
        with tf.control_dependencies([self._next.assign_add(1)]):
            return tf.identity(update)

    def absorb(self, history: Ledger) -> None:
        """Adds what a file says its weights were trained under.

        Raises:
          DPMixError: that protected another kind of record.
        """
        self.ledger.joined(history).refuse_mixed_records(self.plan)
        record_history(self._variables, history)
        self.recount()

    def resume(self, history: Ledger, run: str) -> None:
        """Resumes a run that stopped, repeating its draws where needed.

        Allowed only if seed, data and everything else are that run's: a repeated update
        is then exactly the same release.
        """
        if self.entry().updates:
            raise DPMixError("A run can be resumed only in a new model.")
        rest = tuple(entry for entry in history.entries if entry.run != run)
        own = [entry for entry in history.entries if entry.run == run]
        for variable in self._variables:
            del records_of(variable)[self._run]
            records_of(variable)[run] = self
        self._run = run
        self.absorb(Ledger(rest))
        for entry in own:
            self._conditions |= entry.conditions
            self._next.assign_add(entry.updates)

    def recount(self) -> None:
        """Counts the updates that other runs have made under the plan meanwhile."""
        others = (entry for entry in self.ledger.entries if entry.run != self._run)
        elsewhere = Ledger(tuple(others)).updates(self.plan)
        self._next.assign_add(elsewhere - self._elsewhere)
        self._elsewhere = elsewhere

    @property
    def run(self) -> str:
        """The run's name."""
        return self._run
