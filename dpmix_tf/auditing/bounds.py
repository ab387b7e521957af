"""Empirical lower bounds on epsilon: what an attack on a run has shown.

An attack scores canaries: records that were each included or left out by a fair coin. A
higher score means "it was in". How well the scores tell the two apart bounds epsilon
from below, at a given confidence. A bound above the claimed epsilon refutes the claim.
A bound below it proves nothing: a better attack may exist.

There are three bounds, from the one with the weakest assumptions to the strongest:

- `one_run_bound` (Steinke, Nasr and Jagielski 2023, theorem 5.2): all canaries belong
  to one run and may have influenced each other.
- `clopper_pearson_bound` (Nasr et al. 2021, section 4): scores are independent, as from
  many runs with one canary each.
- `gaussian_bound`: scores are independent, and the run is a subsampled Gaussian
  mechanism with the plan's sampling and updates but unknown noise (after Nasr et al.
  2023, section 4). Both assumptions hold for a run that follows its plan, so a bound
  above the claim still refutes it.
"""

import dataclasses
import math

import numpy as np
from scipy import special, stats
from sklearn import metrics

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import accounting
from dpmix_tf.privacy.plan import PrivacyPlan

# Fractions of the canaries that one_run_bound may guess; it abstains on the rest.
_GUESSED_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)

# Fraction of the scores used to choose the threshold; the rates come from the others.
_FOR_THRESHOLD = 0.2

_MOST_EPSILON = 100.0


@dataclasses.dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon.

    Attributes:
      method: which of this module's bounds it is.
      epsilon: the bound, 0 or more.
      confidence: that epsilon is at least the bound, in (0, 1).
      evidence: the counts behind it, in words.
    """

    method: str
    epsilon: float
    confidence: float
    evidence: str


def check_confidence(confidence: float) -> None:
    """Raises DPMixError unless `confidence` is in (0, 1)."""
    if not 0 < confidence < 1:
        raise DPMixError(f"confidence must be in (0, 1), received: {confidence}.")


def check_scores(scores: np.ndarray, included: np.ndarray) -> None:
    """Refuses scores from which nothing can be concluded.

    Raises:
      DPMixError: shapes differ, a score is NaN, or all canaries are on one side.
    """
    if scores.ndim != 1 or scores.shape != included.shape:
        raise DPMixError(
            "scores and included must have one entry per canary; received shapes "
            f"{scores.shape} and {included.shape}."
        )
    if np.isnan(scores).any():
        raise DPMixError(f"{int(np.isnan(scores).sum())} scores are NaN.")
    if not 0 < included.sum() < len(included):
        raise DPMixError(
            f"All {len(included)} canaries are on one side (in or out); use more "
            "canaries."
        )


def one_run_bound(
    scores: np.ndarray, included: np.ndarray, *, delta: float, confidence: float = 0.95
) -> Bound:
    """Bounds epsilon from the canaries of one run, however they affect each other.

    The highest scores are guessed to be in, and equally many of the lowest to be out.
    The number of guesses is chosen afterwards from a few options; the confidence is
    corrected for that (Bonferroni).

    Args:
      scores: float [m].
      included: bool [m], independent fair coins.
      delta: the delta of the bounded epsilon.
      confidence: in (0, 1).

    Returns:
      The bound.

    Raises:
      DPMixError: see `check_scores`.
    """
    check_scores(scores, included)
    order = np.argsort(scores, kind="stable")
    sorted_included = included[order]
    count = len(scores)
    best = Bound("one run", 0.0, confidence, "no guess tells canaries apart")
    for share in _GUESSED_SHARES:
        each = max(1, int(share * count / 2))
        correct = int(sorted_included[-each:].sum() + (~sorted_included[:each]).sum())
        epsilon = _one_run_epsilon(
            count, 2 * each, correct, delta, (1 - confidence) / len(_GUESSED_SHARES)
        )
        if epsilon > best.epsilon:
            evidence = f"{correct} of {2 * each} guesses right, {count} canaries"
            best = Bound("one run", epsilon, confidence, evidence)
    return best


def _one_run_epsilon(
    count: int, guesses: int, correct: int, delta: float, level: float
) -> float:
    """Largest epsilon at which that many right guesses are unlikelier than `level`."""

    def likelihood(epsilon: float) -> float:
        right = special.expit(epsilon)  # upper bound on P[a guess is right]
        tail = stats.binom.sf(correct - 1, guesses, right)
        below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, right)
        excess = np.cumsum(below) / np.arange(1, correct + 1)
        return tail + 2 * count * delta * (excess.max() if correct else 0.0)

    if likelihood(0.0) > level:
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if likelihood(middle) <= level else (low, middle)
    return low


def clopper_pearson_bound(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    delta: float,
    confidence: float = 0.95,
) -> Bound:
    """Bounds epsilon from independent scores, by the error rates at a threshold.

    Args:
      scores: float [m], in random order: the first fifth chooses the threshold.
      included: bool [m].
      delta: the delta of the bounded epsilon.
      confidence: in (0, 1).

    Returns:
      The bound.

    Raises:
      DPMixError: see `check_scores`.
    """

    def shown(rates: "_Rates") -> float:
        return rates.epsilon(delta)

    rates = _rates_at_best_threshold(scores, included, confidence, shown)
    epsilon = max(0.0, shown(rates))
    return Bound("Clopper-Pearson", epsilon, confidence, rates.evidence)


def gaussian_bound(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    plan: PrivacyPlan,
    confidence: float = 0.95,
) -> Bound:
    """Bounds epsilon from independent scores of a run with unknown Gaussian noise.

    With the plan's sampling and updates, every noise multiplier has a trade-off curve.
    Noise multipliers whose curve the observed rates violate are ruled out. The bound is
    epsilon at the smallest noise multiplier that is ruled out.

    Args:
      scores: float [m], in random order: the first fifth chooses the threshold.
      included: bool [m].
      plan: gives sampling, updates and delta; its noise only starts the search.
      confidence: in (0, 1).

    Returns:
      The bound, at most about ten times the plan's epsilon: the search stops there.

    Raises:
      DPMixError: see `check_scores`; or the plan has no noise.
    """
    if not plan.noise_multiplier > 0:
        raise DPMixError("gaussian_bound needs a plan with noise_multiplier > 0.")

    def separation(rates: "_Rates") -> float:
        return float(special.ndtri(rates.true_low) - special.ndtri(rates.false_high))

    rates = _rates_at_best_threshold(scores, included, confidence, separation)

    def ruled_out(exponent: int) -> bool:
        noise = plan.noise_multiplier * _NOISE_STEP**exponent
        epsilons, deltas = _privacy_curve(plan, noise)
        return rates.impossible(epsilons, deltas)

    # All noise above some value is ruled out, so bisect on a grid.
    low, high = -_NOISE_STEPS_BELOW, _NOISE_STEPS_ABOVE
    if not ruled_out(high):
        return Bound("Gaussian", 0.0, confidence, rates.evidence)
    if ruled_out(low):
        high = low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ruled_out(middle) else (middle, high)
    epsilon = accounting.epsilon(
        noise_multiplier=plan.noise_multiplier * _NOISE_STEP**high,
        sampling_probability=plan.sampling_probability,
        updates=plan.updates,
        delta=plan.delta,
    )
    return Bound("Gaussian", epsilon, confidence, rates.evidence)


# Noise multipliers that gaussian_bound tries: the plan's times powers of this step,
# from a quarter to eight times the plan's.
_NOISE_STEP = 1.01
_NOISE_STEPS_BELOW, _NOISE_STEPS_ABOVE = 139, 209


def _privacy_curve(plan: PrivacyPlan, noise: float) -> tuple[np.ndarray, np.ndarray]:
    return accounting.privacy_curve(
        noise_multiplier=noise,
        sampling_probability=plan.sampling_probability,
        updates=plan.updates,
    )


@dataclasses.dataclass(frozen=True)
class _Rates:
    """Bounds on an attack's rates, which hold jointly at the requested confidence."""

    true_low: float  # of "in" among canaries that were in
    false_high: float  # of "in" among canaries that were not
    evidence: str

    def epsilon(self, delta: float) -> float:
        """The epsilon that these rates imply, by the definition of (epsilon, delta)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.array(
                [
                    (self.true_low - delta) / self.false_high,
                    (1 - self.false_high - delta) / (1 - self.true_low),
                ]
            )
            return float(np.log(np.maximum(ratios, 1e-300)).max())

    def impossible(self, epsilons: np.ndarray, deltas: np.ndarray) -> bool:
        """Whether these rates violate any of these (epsilon, delta) guarantees."""
        factors = np.exp(epsilons)
        return bool(
            np.any(self.true_low > factors * self.false_high + deltas)
            or np.any(1 - self.false_high > factors * (1 - self.true_low) + deltas)
        )


def _rates_at_best_threshold(scores, included, confidence, value) -> _Rates:
    """The rates at the threshold with the largest `value`, chosen on other scores."""
    check_scores(scores, included)
    split = max(2, int(_FOR_THRESHOLD * len(scores)))
    first, rest = (scores[:split], included[:split]), (scores[split:], included[split:])
    check_scores(*rest)
    candidates = np.quantile(first[0], np.linspace(0.002, 0.998, 250))
    rates = _rates(*first, candidates, confidence)
    best = int(np.argmax([value(rate) for rate in rates]))
    return _rates(*rest, candidates[best : best + 1], confidence)[0]


def _rates(scores, included, thresholds, confidence) -> list[_Rates]:
    """Clopper-Pearson limits at each threshold, each at half the error probability."""
    level = (1 - confidence) / 2
    true, false = (
        len(side) - np.searchsorted(np.sort(side), thresholds, side="right")
        for side in (scores[included], scores[~included])
    )
    positives, negatives = int(included.sum()), int((~included).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        low = stats.beta.ppf(level, true, positives - true + 1)
        high = stats.beta.ppf(1 - level, false + 1, negatives - false)
    low = np.where(true == 0, 0.0, low)
    high = np.where(false == negatives, 1.0, high)
    return [
        _Rates(
            float(low[i]),
            float(high[i]),
            f"{true[i]} of {positives} found, {false[i]} of {negatives} wrongly",
        )
        for i in range(len(thresholds))
    ]


@dataclasses.dataclass(frozen=True)
class Roc:
    """How an attack trades true positives against false positives.

    Attributes:
      false_positive_rates: float [n], from 0 to 1.
      true_positive_rates: float [n], at those false positive rates.
      auc: area under the curve.
      auc_interval: its confidence interval (Hanley and McNeil 1982).
      at: false positive rate -> (true positive rate, low, high) by Clopper-Pearson.
    """

    false_positive_rates: np.ndarray
    true_positive_rates: np.ndarray
    auc: float
    auc_interval: tuple[float, float]
    at: dict[float, tuple[float, float, float]]


def roc(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    confidence: float = 0.95,
    rates: tuple[float, ...] = (0.001, 0.01),
) -> Roc:
    """Computes an attack's ROC curve.

    Args:
      scores: float [m], higher means "in".
      included: bool [m].
      confidence: of the intervals, in (0, 1).
      rates: false positive rates at which to report the true positive rate.

    Returns:
      Roc. Ties between scores count half.

    Raises:
      DPMixError: see `check_scores`.
    """
    check_scores(scores, included)
    positives, negatives = int(included.sum()), int((~included).sum())
    wrong, found, _ = metrics.roc_curve(included, scores, drop_intermediate=False)
    auc = float(metrics.auc(wrong, found))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (positives - 1) * (q1 - auc**2)
        + (negatives - 1) * (q2 - auc**2)
    ) / (positives * negatives)
    reach = special.ndtri((1 + confidence) / 2) * math.sqrt(max(variance, 0.0))
    at = {}
    for rate in rates:
        share = found[np.searchsorted(wrong, rate, side="right") - 1]
        test = stats.binomtest(round(share * positives), positives)
        interval = test.proportion_ci(confidence)
        at[rate] = (float(share), float(interval.low), float(interval.high))
    return Roc(wrong, found, auc, (max(0.0, auc - reach), min(1.0, auc + reach)), at)
