"""Standard errors, and differences between arms that share their seeds."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between two arms' accuracies over the same seeds.

    Attributes:
      mean: first minus second, in the unit of the values.
      low, high: ends of the interval; None for fewer than two pairs.
      pairs: how many seeds both arms have.
      resolved: whether it is significant: this interval and Student's t both exclude 0.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    resolved: bool

    def sentence(self, arm: str, baseline: str) -> str:
        """Describes the difference in words; the accuracies are in percent."""
        text = f"{arm} is {abs(self.mean):.2f} points "
        text += ("above " if self.mean > 0 else "below ") + baseline
        if abs(self.mean) < 0.005:
            text = f"{arm} is level with {baseline}"
        if self.low is None:
            return f"{text}; a single pair of runs says nothing about chance."
        text += (
            f" (95 % interval {self.low:+.2f} to {self.high:+.2f}, {self.pairs} pairs)"
        )
        return text + (": significant." if self.resolved else ": not significant.")


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares two arms, seed by seed.

    The interval is a percentile bootstrap over the pairs. The percentiles are widened
    by as much as Student's t is wider than the normal distribution (Hesterberg 2015,
    section 5.3), because plain percentiles are much too narrow for a handful of seeds.
    With 3 pairs, even these intervals cover the truth only three times in four, since
    they end at the most extreme values seen. A difference therefore counts as
    significant (`resolved`) only where Student's t agrees.

    Args:
      first: [n], one value per seed.
      second: [n], for the same seeds in the same order.
    """
    differences = np.subtract(first, second).astype(float)
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return Difference(mean, None, None, count, False)
    student = stats.t.ppf((1 + _LEVEL) / 2, count - 1)
    tail = stats.norm.cdf(-math.sqrt(count / (count - 1)) * student)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # if all differences are equal, the interval is a point
        interval = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=20_000,
            confidence_level=max(1 - 2 * tail, 0.0),
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    reach = student * np.std(differences, ddof=1) / math.sqrt(count)
    resolved = (low > 0 or high < 0) and abs(mean) > reach
    return Difference(mean, low, high, count, bool(resolved))
