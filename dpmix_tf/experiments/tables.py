"""The tables of an experiment's report."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpmix_tf.experiments.comparison import standard_error
from dpmix_tf.experiments.document import Table
from dpmix_tf.experiments.records import Cost, Results
from dpmix_tf.experiments.study import exact
from dpmix_tf.privacy import accounting
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.privacy.selection import Choice


def arms_table(results: Results) -> Table:
    """What each arm is."""
    rows = [
        [
            arm,
            str(results.of_arm(arm)[0].views_per_example),
            in_words(results.study.changes(arm)),
        ]
        for arm in results.arms
    ]
    return Table(["arm", "views per example", "settings"], rows)


def accuracy_table(results: Results, *, averaged: bool) -> Table:
    """Test accuracies in percent, with averaged or with the last update's weights."""

    def cell(arm, epsilon):
        found = results.of(arm, epsilon)
        values = [each.accuracy if averaged else each.last_accuracy for each in found]
        return _mean([100 * value for value in values])

    return Table(
        ["arm", *(f"epsilon {exact(e)}" for e in results.epsilons)],
        [[arm, *(cell(arm, e) for e in results.epsilons)] for arm in results.arms],
    )


def published_table(results: Results) -> Table:
    """Accuracies beside published ones."""
    rows = [
        [
            arm,
            exact(epsilon),
            _mean(results.percents(arm, float(epsilon))) or "not run",
            str(figure),
            source,
        ]
        for arm, epsilon, figure, source in results.study.config.published
    ]
    return Table(["arm", "epsilon", "here", "published", "source"], rows)


def cost_table(results: Results, root: Path) -> Table:
    """Times, and the noise per clipped term.

    Args:
      results: of the experiment.
      root: its folder, where the runs' costs are.
    """
    per_update: dict[str, float] = {}
    for arm in results.arms:
        costs = [Cost.read(root / each.run.name) for each in results.of_arm(arm)]
        cost = sum(costs, Cost())
        if cost.updates:
            per_update[arm] = cost.seconds / cost.updates
    rows = []
    for arm, seconds in per_update.items():
        record = results.of_arm(arm)[0]
        plan, views = record.plan, record.views_per_example
        batch = plan.expected_batch_size
        relative = seconds / per_update.get("dp_sgd", float("nan"))
        clipped = batch / (results.microbatch(arm) or 1)
        noise = plan.noise_multiplier * plan.sensitivity / clipped
        rows.append(
            [
                arm,
                f"{seconds * plan.updates:.0f}",
                f"{views * batch / seconds:,.0f}".replace(",", ""),
                f"{relative:.2f}" if relative == relative else "-",
                f"{noise:.4f}",
            ]
        )
    header = [
        "arm",
        "seconds per run",
        "views per second",
        "time relative to dp_sgd",
        f"noise per clipped term, epsilon {exact(results.epsilons[0])}",
    ]
    return Table(header, rows)


def clipped_table(results: Results) -> Table | None:
    """Clipped gradients per 100 examples; None if no run has private metrics."""
    rows = []
    for arm in results.arms:
        found = [
            [each.clipped for each in results.of(arm, epsilon)]
            for epsilon in results.epsilons
        ]
        known = [[value for value in row if value is not None] for row in found]
        if any(known):
            cells = [_mean([100 * value for value in row]) or "-" for row in known]
            rows.append([arm, *cells])
    header = ["arm", *(f"epsilon {exact(e)}" for e in results.epsilons)]
    return Table(header, rows) if rows else None


def tuning_table(results: Results) -> Table:
    """The trials of each arm at each epsilon, and what choosing among them costs."""
    study, rows = results.study, []
    for arm, epsilon in study.groups():
        found = results.of(arm, epsilon)
        trials = [
            each
            for each in results.trials
            if (each.run.arm, each.run.epsilon) == (arm, epsilon)
        ]
        if not found or not trials:
            continue
        plan = found[0].plan
        choice = Choice(len(study.trials), "geometric", None)
        updates = plan.updates * study.config.tuning_seeds
        part = plan.part(updates)._replace(choice=choice)
        total = accounting.composed_epsilon((part,), plan.delta, "rdp")
        tried = ", ".join(
            f"{in_words(dict(each.run.trial))}: {100 * each.score:.2f}"
            for each in trials
        )
        chosen = in_words(dict(found[0].run.trial))
        rows.append([arm, exact(epsilon), chosen, tried, round_up(total)])
    header = [
        "arm",
        "epsilon",
        "chosen",
        "validation accuracy (percent)",
        "epsilon of the choice",
    ]
    return Table(header, rows)


def in_words(fields: Mapping[str, Any]) -> str:
    """Describes settings: the name's value, then "field = value"."""
    return (
        ", ".join(
            value if name == "name" else f"{name.rpartition('.')[2]} = {value}"
            for name, value in fields.items()
            if value is not None
        )
        or "-"
    )


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    error = standard_error(values)
    return f"{statistics.mean(values):.2f}" + (f" ({error:.2f})" if error else "")


def figures(results: Results) -> dict[str, Any]:
    """Returns the accuracies behind the tables, by run, as JSON-able values."""
    return {
        "title": results.study.config.title,
        "runs": [
            {
                "arm": each.run.arm,
                "epsilon": each.run.epsilon,
                "seed": each.run.seed,
                "tuned": dict(each.run.trial),
                "test_accuracy": each.last_accuracy,
                "test_accuracy_ema": each.accuracy,
            }
            for each in results.runs
        ],
        "trials": [
            {
                "arm": each.run.arm,
                "epsilon": each.run.epsilon,
                "seed": each.run.seed,
                "tuned": dict(each.run.trial),
                "validation_accuracy_ema": each.score,
            }
            for each in results.trials
        ],
        "software": results.software,
    }
