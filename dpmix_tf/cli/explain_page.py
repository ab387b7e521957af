"""A page with sliders: what epsilon means, at any batch size and number of updates.

The page is one file that loads nothing. Its sliders move over a grid of plans, each of
which was calibrated and explained by the library: no number on it is interpolated.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from tqdm import tqdm

import dpmix_tf
from dpmix_tf.cli import explain
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_text_atomic
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.plan import check_number

EPSILONS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
UPDATES = (100, 300, 1_000, 3_000)
_BATCHES = (0.02, 0.05, 0.1, 0.2)  # of all examples; smaller ones take long
_START = (7, 2, 2)  # where the sliders of these grids stand first
_RATES = np.geomspace(1e-4, 1.0, 60)  # of a curve
_DIGITS = 4  # significant ones of a curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The plans among which the sliders choose: every combination of three values.

    Attributes:
      num_examples: N.
      delta: in (0, 1).
      accountant: "pld" or "rdp"; the curves are PLD's.
      epsilons: above 0, rising as the next two.
      batch_sizes: expected ones, at most N.
      updates: numbers of noisy updates.
    """

    num_examples: int
    delta: float
    accountant: str
    epsilons: Sequence[float]
    batch_sizes: Sequence[float]
    updates: Sequence[int]

    def settings(self) -> list[dict[str, Any]]:
        """Returns arguments of PrivacyPlan.for_epsilon; updates vary first."""
        return [
            {
                "epsilon": epsilon,
                "expected_batch_size": batch,
                "updates": updates,
                "num_examples": self.num_examples,
                "delta": self.delta,
                "accountant": self.accountant,
            }
            for epsilon, batch, updates in itertools.product(
                self.epsilons, self.batch_sizes, self.updates
            )
        ]


def grid_for(
    *,
    num_examples: int,
    delta: float,
    accountant: str = "pld",
    epsilons: Sequence[float] = EPSILONS,
    batch_sizes: Sequence[float] | None = None,
    updates: Sequence[int] = UPDATES,
) -> Grid:
    """Returns a grid; batch sizes are by default from 2 to 20 % of the examples.

    Args:
      num_examples: see Grid, as for the others.
      delta: in (0, 1).
      accountant: "pld" or "rdp".
      epsilons: in any order.
      batch_sizes: in any order; None for round ones.
      updates: in any order.

    Raises:
      DPMixError: a value is out of range.
    """
    if batch_sizes is None:
        batch_sizes = [max(1.0, float(f"{s * num_examples:.2g}")) for s in _BATCHES]
    grid = Grid(
        num_examples=num_examples,
        delta=delta,
        accountant=accountant,
        epsilons=sorted(set(epsilons)),
        batch_sizes=sorted(set(batch_sizes)),
        updates=sorted(set(updates)),
    )
    check_number("the least of --epsilons", grid.epsilons[0], above=0.0)
    for settings in grid.settings():  # refuses bad values, and warns of delta, once
        del settings["epsilon"]
        PrivacyPlan(noise_multiplier=1.0, **settings)
    return grid


def write_page(path: str, grid: Grid) -> None:
    """Computes every plan of a grid, on all processors, and writes the page.

    Args:
      path: HTML file to write.
      grid: some hundred plans take minutes.

    Raises:
      DPMixError: a value is out of range, no noise is enough, or the file cannot be
        written.
    """
    folder = local_path(path, "--output").parent
    if not os.access(folder, os.W_OK):  # said now, not after minutes
        raise DPMixError(
            f"--output is to be written into {folder}, which is not a folder that can "
            "be written to. Choose another, or create it."
        )
    write_text_atomic(path, _page(grid, _points(grid.settings())))


def _points(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each plan means, in the order of the settings."""
    # Plans with small batches take longest, and are begun first. New processes hold
    # none of the locks that threads of this one may hold.
    order = sorted(range(len(settings)), key=lambda at: _cost(settings[at]))
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(os.cpu_count() or 1, len(settings))) as pool:
        computed = pool.imap(point, [settings[at] for at in order])
        bar = tqdm(computed, total=len(order), unit="plan", desc="explaining")
        found = dict(zip(order, bar, strict=True))
    return [found[at] for at in range(len(settings))]


def _cost(settings: dict[str, Any]) -> tuple[float, ...]:
    return settings["expected_batch_size"], -settings["epsilon"], -settings["updates"]


def point(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what the page shows of one plan.

    Args:
      settings: arguments of PrivacyPlan.for_epsilon.

    Returns:
      "rows": names and cells of the table; "words": a sentence; "curve": true-positive
      rates at the page's false-positive rates; "found": those at `explain.RATES`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of delta, once for each plan
        plan = PrivacyPlan.for_epsilon(**settings)
        explained = explain.explain(
            Ledger.planned(plan), delta=plan.delta, accountant=plan.accountant
        )
    rows = explain.rows_of(explained)[1:]  # the sliders say what it is called
    rows.insert(1, ("sampling probability", f"{plan.sampling_probability:.4g}"))
    curve = explained.curve
    return {
        "rows": rows,
        "words": explain.in_words(explained),
        "curve": _rounded_up(curve.true_positive_rate(_RATES)),
        "found": _rounded_up(curve.true_positive_rate(np.array(explain.RATES))),
    }


def _rounded_up(rates: np.ndarray) -> list[float]:
    """Rates in (0, 1] with a few significant digits, never rounded down."""
    rounded = []
    for rate in map(float, rates):
        digits = _DIGITS - 1 - math.floor(math.log10(rate))
        rounded.append(math.ceil(round(rate * 10**digits, 6)) / 10**digits)
    return rounded


def _page(grid: Grid, points: list[dict[str, Any]]) -> str:
    axes = {
        "Epsilon": [f"{epsilon:g}" for epsilon in grid.epsilons],
        "Expected batch size": [f"{batch:,g}" for batch in grid.batch_sizes],
        "Updates": [f"{updates:,}" for updates in grid.updates],
    }
    names = [name for name, _ in points[0]["rows"]]
    shown = {
        "about": f"{grid.num_examples:,} records and delta {grid.delta:g}",
        "axes": [
            {"name": name, "values": values, "start": min(start, len(values) - 1)}
            for (name, values), start in zip(axes.items(), _START, strict=True)
        ],
        "rates": _RATES.tolist(),
        "marked": explain.RATES,
        "names": names,
        "points": [
            each | {"rows": [cell for _, cell in each["rows"]]} for each in points
        ],
    }
    data = json.dumps(shown, separators=(",", ":")).replace("</", "<\\/")
    template = resources.files(__package__).joinpath("explain_page.html")
    text = template.read_text(encoding="utf-8")
    text = text.replace("ABOUT", explain.ABOUT)
    return text.replace("VERSION", dpmix_tf.__version__).replace("GRID", data)
