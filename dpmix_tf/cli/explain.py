"""What an epsilon means for whoever is in the data: a table, JSON, a picture."""

import dataclasses
import json
import math
import warnings
from typing import Any

import numpy as np

from dpmix_tf import plotting
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_atomic
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.attacks import (
    PRECISION,
    RATES,
    TradeOff,
    in_percent,
    trade_off,
)
from dpmix_tf.privacy.plan import finite_or_none, round_up

PRIORS = (0.5, 0.01)
_LEAST_RATE = 1e-4  # of the picture
ABOUT = (
    "These are limits for attacks that see every update's weights and know all other "
    "records; attacks on the final weights alone usually find fewer. Advantage is the "
    "largest difference between what an attack finds and its false alarms. mu is that "
    f"of Gaussian DP to the accountant's precision ({PRECISION:g})."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """One guarantee, and what it means.

    Attributes:
      epsilon: infinity where there is no guarantee.
      delta: in (0, 1).
      curve: the limit to attacks by all that the accountant knows.
      pair: the limit by epsilon and delta alone.
      noise_multiplier: of the only plan; None where there are several.
    """

    epsilon: float
    delta: float
    curve: TradeOff
    pair: TradeOff
    noise_multiplier: float | None

    @property
    def name(self) -> str:
        """What it is called in a table or a picture."""
        if not self.curve.guaranteed:
            return "no guarantee"
        return f"epsilon = {round_up(self.epsilon)}"

    def to_dict(self) -> dict[str, Any]:
        """Returns values for JSON; None where there is no limit."""
        return {
            "epsilon": finite_or_none(self.epsilon),
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "guaranteed": self.curve.guaranteed,
            "true_positive_rates": {
                f"{rate:g}": {
                    "curve": self.curve.true_positive_rate(rate),
                    "epsilon_and_delta_alone": self.pair.true_positive_rate(rate),
                }
                for rate in RATES
            },
            "advantage": self.curve.advantage,
            "mu": finite_or_none(self.curve.mu),
            "posterior": {
                f"{prior:g}": self.curve.posterior(prior, self.delta)
                for prior in PRIORS
            },
        }


def explain(
    ledger: Ledger,
    *,
    delta: float,
    accountant: str,
    group_size: int = 1,
    seed_is_known: bool = False,
) -> Explained:
    """Computes what the guarantee of a ledger means.

    Args:
      ledger: what is spent.
      delta: in (0, 1).
      accountant: of the stated epsilon, "pld" or "rdp"; the curve is PLD's.
      group_size: how many records are in or not together.
      seed_is_known: whoever knows the seed can subtract the noise.
    """
    epsilon = math.inf
    if not seed_is_known:
        epsilon = ledger.epsilon(delta, accountant, group_size)
    if math.isinf(epsilon):
        curve = TradeOff.of_pair(math.inf, 1.0)
    else:
        curve = trade_off(ledger, delta, group_size)
    noises = {part.noise_multiplier for part in ledger.parts()}
    return Explained(
        epsilon=epsilon,
        delta=delta,
        curve=curve,
        pair=TradeOff.of_pair(epsilon, delta),
        noise_multiplier=noises.pop() if len(noises) == 1 else None,
    )


def to_text(explained: list[Explained]) -> str:
    """The explanations as one table and a few sentences."""
    columns = [rows_of(each) for each in explained]
    width = max(len(cell) for column in columns for _, cell in column) + 3
    table = "\n".join(
        f"{row[0][0]:<40}" + "".join(f"{cell:>{width}}" for _, cell in row)
        for row in zip(*columns, strict=True)
    )
    words = "\n".join([*map(in_words, explained), ABOUT])
    return f"What any attack can do:\n{table}\n\n{words}"


def rows_of(each: Explained) -> list[tuple[str, str]]:
    """Returns what a table says of one guarantee: (name of a row, its cell)."""
    noise = each.noise_multiplier
    rows = [
        ("", each.name),
        ("noise multiplier", "several" if noise is None else _noise_up(noise)),
    ]
    for rate in RATES:
        found = in_percent(each.curve.true_positive_rate(rate))
        alone = in_percent(each.pair.true_positive_rate(rate))
        rows.append((f"finds, at {100 * rate:g} % false alarms", found))
        rows.append(("  by epsilon and delta alone", alone))
    rows.append(("advantage", in_percent(each.curve.advantage)))
    rows.append(("mu of Gaussian DP", round_up(each.curve.mu)))
    for prior in PRIORS:
        sure = in_percent(each.curve.posterior(prior, each.delta))
        rows.append((f"certainty of somebody {100 * prior:g} % sure", sure))
    return rows


def in_words(each: Explained) -> str:
    """What a guarantee means, in one sentence or two."""
    if not each.curve.guaranteed:
        return (
            "No guarantee: an attack may find everybody who is in the data, without a "
            "false alarm."
        )
    found = in_percent(each.curve.true_positive_rate(0.01))
    even, rare = (each.curve.posterior(prior, each.delta) for prior in PRIORS)
    return (
        f"{each.name}: an attack that accuses 1 % of those who are not in the data "
        f"finds at most {found} of those who are. Whoever is 50 % sure beforehand that "
        f"a record is in the data is at most {in_percent(even)} sure afterwards; "
        f"whoever is 1 % sure, at most {in_percent(rare)}; except with probability "
        f"{each.delta:g}."
    )


def _noise_up(noise: float) -> str:
    """Rounded up, so that what is said holds for whoever uses it."""
    return f"{math.ceil(noise * 10_000 - 1e-9) / 10_000:.4f}"


def read_audit(path: str) -> dict[str, list[tuple[float, ...]]]:
    """Reads what attacks have reached from an audit.json of bin/audit.py.

    Returns:
      attack -> [(false-positive rate, true-positive rate, its low and high end)].

    Raises:
      DPMixError: the file is not an audit's.
    """
    file = local_path(path, "--audit")
    try:
        audit = json.loads(file.read_text(encoding="utf-8"))
        attacks = dict(audit.get("training", {}).get("attacks", {}))
        attacks |= {
            f"membership, {name}": each
            for name, each in audit.get("membership", {}).items()
        }
        found = {
            name: [
                (float(rate), float(at["rate"]), *map(float, at["interval"]))
                for rate, at in each["true_positive_rates"].items()
            ]
            for name, each in attacks.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DPMixError(
            f"{file} is not an audit: {error!r}. Expected the audit.json that "
            "bin/audit.py writes into its --workdir."
        ) from error
    if not found:
        raise DPMixError(
            f"{file} holds no attack. Expected the audit.json that bin/audit.py writes "
            "into its --workdir."
        )
    return found


def draw(explained: list[Explained], path: str, audit: str | None = None) -> None:
    """Draws the trade-off curves, and what attacks have reached, as a PNG.

    Args:
      explained: one curve each.
      path: PNG file to write.
      audit: path of an audit.json; None for none.

    Raises:
      DPMixError: see read_audit.
    """
    attacks = {} if audit is None else read_audit(audit)
    pyplot = plotting.pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    rates = np.geomspace(_LEAST_RATE, 1.0, 300)
    for each in explained:
        axes.plot(rates, each.curve.true_positive_rate(rates), label=each.name)
    axes.plot(rates, rates, color="grey", linewidth=0.8, label="guessing")
    for (name, points), marker in zip(attacks.items(), "osD^v*" * 9, strict=False):
        at, found, low, high = np.array(points).T
        bars = np.maximum([found - low, high - found], 0)
        axes.errorbar(at, found, bars, fmt=marker, color="black", ms=4, label=name)
    axes.set(
        xscale="log",
        xlim=(_LEAST_RATE, 1),
        ylim=(0, 1.02),
        xlabel="false-positive rate",
        ylabel="true-positive rate",
        title="The most that any membership attack can find",
    )
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    write_atomic(path, lambda file: figure.savefig(file, dpi=120, format="png"))
    pyplot.close(figure)


def draw_epsilon(plan: PrivacyPlan, path: str) -> None:
    """Plots epsilon against updates, by both accountants, as a PNG."""
    pyplot = plotting.pyplot()
    count = min(plan.updates, 25)
    updates = sorted({max(1, plan.updates * i // count) for i in range(count + 1)})
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    styles = {"pld": "-", "rdp": "--"}
    for accountant in [plan.accountant] if plan.choice else styles:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = dataclasses.replace(plan, accountant=accountant)
        epsilons = [other.epsilon(update) for update in updates]
        axes.plot(
            updates,
            epsilons,
            styles[accountant],
            color="black",
            label=accountant.upper(),
        )
    axes.set(
        xlabel="updates",
        ylabel=f"epsilon at delta = {plan.delta:g}",
        title=f"noise multiplier {plan.noise_multiplier:.3g}, "
        f"q = {plan.sampling_probability:.4g}",
        ylim=(0, None),
    )
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomic(path, lambda file: figure.savefig(file, dpi=120, format="png"))
    pyplot.close(figure)
