"""How well scores tell who has a label, with intervals at 95 %."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats
from sklearn.metrics import average_precision_score

from dpmix_tf.errors import DPMixError

_NORMAL = float(stats.norm.ppf(0.975))


class Interval(NamedTuple):
    """An AUROC with its 95 % interval.

    Attributes:
      value: in [0, 1].
      low: in [0, value].
      high: in [value, 1].
      positives: examples that have the label.
      negatives: examples known not to have it.
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int


def auroc(scores: Any, labels: Any) -> Interval | None:
    """Returns the area under the ROC curve with DeLong's interval.

    The variance is that of DeLong et al. (1988), from ranks as in Sun and Xu (2014);
    the interval is symmetric on the logit scale and so stays within [0, 1]. Where the
    variance is 0 because the classes are perfectly separated, the interval is Wilson's
    for as many pairs as the smaller class has examples. With a single positive or
    negative example there is no variance to estimate, and the interval is [0, 1].

    Args:
      scores: float [n], finite; larger where the label is likelier. Ties count half.
      labels: [n] of 0, 1 or NaN; NaN, for unknown, is left out.

    Returns:
      None where there are no positives or no negatives.

    Raises:
      DPMixError: there are no examples, or the arguments are not as described.
    """
    scores, labels = _check_binary(scores, labels)
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not positive.size or not negative.size:
        return None
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    # How much of the other class each example is on the right side of.
    above = (ranks[: positive.size] - stats.rankdata(positive)) / negative.size
    below = 1 - (ranks[positive.size :] - stats.rankdata(negative)) / positive.size
    value = float(above.mean())
    low, high = _delong_interval(value, above, below)
    return Interval(value, low, high, positive.size, negative.size)


def _delong_interval(
    value: float, above: np.ndarray, below: np.ndarray
) -> tuple[float, float]:
    pairs = min(above.size, below.size)
    if pairs == 1:
        return 0.0, 1.0
    variance = above.var(ddof=1) / above.size + below.var(ddof=1) / below.size
    if value in (0, 1) or variance == 0:
        low, high = (
            wilson(whole(value * pairs), pairs) for whole in (math.floor, math.ceil)
        )
        return low["low"], high["high"]
    spread = _NORMAL * np.sqrt(variance) / (value * (1 - value))
    middle = special.logit(value)
    return float(special.expit(middle - spread)), float(special.expit(middle + spread))


def average_precision(scores: Any, labels: Any) -> float | None:
    """Returns scikit-learn's average precision; None without positives.

    Args:
      scores: as of `auroc`.
      labels: as of `auroc`.

    Raises:
      DPMixError: see `auroc`.
    """
    scores, labels = _check_binary(scores, labels)
    known = ~np.isnan(labels)
    if not np.any(labels == 1):
        return None
    return float(average_precision_score(labels[known], scores[known]))


def weighted_auroc(
    weights: np.ndarray, labels: np.ndarray, starts: np.ndarray
) -> float | None:
    """AUROC of examples sorted by scores, whose distinct values begin at `starts`."""
    positive = np.add.reduceat(weights * labels, starts)
    negative = np.add.reduceat(weights * (1 - labels), starts)
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / pairs) if pairs else None


def wilson(successes: float, trials: int) -> dict[str, float]:
    """Returns a proportion, "value", with "low" and "high" of Wilson's interval."""
    test = stats.binomtest(int(successes), int(trials))
    low, high = test.proportion_ci(method="wilson")
    return {"value": float(successes / trials), "low": float(low), "high": float(high)}


def _check_binary(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
        raise DPMixError(
            "scores and labels must be of the same shape [n], with at least one "
            f"example, received: {scores.shape} and {labels.shape}."
        )
    if not np.all(np.isfinite(scores)):
        raise DPMixError("scores must be finite, received NaN or infinity.")
    if not np.all(np.isnan(labels) | np.isin(labels, (0, 1))):
        raise DPMixError("labels must be 0, 1 or NaN for unknown, received others.")
    return scores, labels
