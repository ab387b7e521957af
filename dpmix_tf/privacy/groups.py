"""What updates reveal about several examples of one person, by privacy losses.

Each of a group's m examples joins a batch independently with probability q, so that
j of them do with the binomial probability w_j, and these move the sum by at most j
sensitivities. With noise sigma (in sensitivities), the mixture sum_j w_j N(j, sigma^2)
and N(0, sigma^2) then dominate every pair of neighbouring outputs, in both directions
(all m removed; all m added). Why: given the rest of the batch, the likelihood ratio of
the outputs is a sum of exponentials of Gaussian variables, whose covariances (scalar
products of the moves, over sigma^2) are largest where all gradients point the same way
at full length; each hockey-stick divergence is a convex function's expectation of that
ratio, and grows with the covariances by Kahane's inequality (1986, Sur le chaos
multiplicatif; Choquette-Choo et al. 2024, Privacy Amplification for Matrix Mechanisms,
call it a mixture of Gaussians; Schuchardt et al. 2024 treat groups in general).

Composition over updates is dp_accounting's, which holds for adaptive updates too.
"""

import math

import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from scipy import special, stats

# Tails of this probability count as revealing everything. dp_accounting cuts there too.
_LOG_TAIL = -50.0
_CUT = float(-special.ndtri_exp(_LOG_TAIL))  # in standard deviations

_MOST_STEPS = 100  # of Newton's method; a handful are needed
_BLOCK = 2**20  # elements of the largest array


class Mixture:
    """The mixture of Gaussians that one update makes of a group.

    Args:
      noise_multiplier: sigma, above 0.
      sampling_probability: q in (0, 1).
      group_size: m, 1 or more.

    Attributes:
      missing: float, the probability of the components that are left out because they
        are too rare; epsilon's upper bound counts it as revealing everything.
    """

    def __init__(
        self, noise_multiplier: float, sampling_probability: float, group_size: int
    ):
        counts = stats.binom(group_size, sampling_probability)
        # scipy's isf cannot see tails as small as this.
        rare = counts.sf(np.arange(group_size + 1)) <= math.exp(_LOG_TAIL)
        most = int(np.argmax(rare))
        self.missing = float(counts.sf(most))
        self._shifts = np.arange(most + 1)
        self._log_weights = counts.logpmf(self._shifts)
        self._noise = noise_multiplier
        # Beyond these, either distribution has next to nothing.
        self.lowest = -_CUT * noise_multiplier
        self.highest = most + _CUT * noise_multiplier

    def log_ratio(self, x: np.ndarray | float) -> np.ndarray:
        """Returns the log density ratio to N(0, sigma^2) at x [n], float64 [n]."""
        return special.logsumexp(self._log_terms(np.asarray(x)), axis=-1)

    def _log_terms(self, x: np.ndarray) -> np.ndarray:
        """The ratio's addends, one for each shift, as logarithms: [n] -> [n,shifts]."""
        shifts = self._shifts
        exponents = shifts * (x[..., None] - shifts / 2) / self._noise**2
        return self._log_weights + exponents

    def where_ratio_is(self, log_ratio: np.ndarray) -> np.ndarray:
        """The inverse of `log_ratio`: [n] -> [n]; -infinity below all its values.

        Without the component that does not move, the ratio's logarithm is convex and
        rising with a slope of at least 1 / sigma^2, so that Newton's method from the
        right comes down to the root and cannot pass it.
        """
        still, shifts = self._log_weights[0], self._shifts[1:]
        found = np.full(log_ratio.shape, -np.inf)
        inside = log_ratio > still
        target = log_ratio[inside]
        target = target + np.log(-np.expm1(still - target))  # without that component
        # Where one component alone reaches the ratio: all together reach it before.
        x = np.min(
            (target[:, None] - self._log_weights[1:]) * self._noise**2 / shifts
            + shifts / 2,
            axis=-1,
        )
        for _ in range(_MOST_STEPS):
            terms = self._log_terms(x)[:, 1:]
            value = special.logsumexp(terms, axis=-1)
            mean = np.exp(terms - value[:, None]) @ shifts
            step = (value - target) * self._noise**2 / mean
            x = x - step
            if np.all(np.abs(step) <= 1e-12 * (self._noise + np.abs(x))):
                break
        found[inside] = x
        return found

    def log_below(self, x: np.ndarray) -> np.ndarray:
        """Returns log P(X <= x) under the mixture, [n] -> [n]."""
        tails = special.log_ndtr((x[:, None] - self._shifts) / self._noise)
        return special.logsumexp(self._log_weights + tails, axis=-1)

    def above(self, x: np.ndarray) -> np.ndarray:
        """Returns P(X > x) under the mixture, [n] -> [n]."""
        tails = special.ndtr((self._shifts - x[:, None]) / self._noise)
        return tails @ np.exp(self._log_weights)

    def removal_delta(self, epsilons: np.ndarray) -> np.ndarray:
        """Returns delta at each epsilon [n] of telling the mixture from N(0, sigma^2).

        That is, of removing the group. Only the output's upper tail tells.
        """
        x = self.where_ratio_is(epsilons)
        others = np.exp(epsilons + special.log_ndtr(-x / self._noise))
        return np.clip(self.above(x) - others + self.missing, 0.0, 1.0)

    def addition_delta(self, epsilons: np.ndarray) -> np.ndarray:
        """Returns delta at each epsilon [n] of telling N(0, sigma^2) from the mixture.

        That is, of adding the group. Components left out only raise it.
        """
        x = self.where_ratio_is(-epsilons)
        others = np.exp(epsilons + self.log_below(x))
        return np.clip(special.ndtr(x / self._noise) - others, 0.0, 1.0)

    def removal(self, grid: float) -> pld_pmf.PLDPmf:
        """Returns an upper bound on the privacy losses of removing the group."""
        ends = float(self.log_ratio(self.lowest)), float(self.log_ratio(self.highest))
        return self._losses(self.removal_delta, ends, grid)

    def addition(self, grid: float) -> pld_pmf.PLDPmf:
        """Returns an upper bound on the privacy losses of adding the group."""
        ends = float(self.log_ratio(-self.lowest)), float(self.log_ratio(self.lowest))
        return self._losses(self.addition_delta, (-ends[0], -ends[1]), grid)

    def _losses(self, delta_at, ends: tuple[float, float], grid: float):
        """Connects the dots (Doroshenko et al. 2022) at the grid's points."""
        lower, upper = math.floor(ends[0] / grid), math.ceil(ends[1] / grid)
        points = np.arange(lower, upper + 1)
        blocks = math.ceil(points.size * self._shifts.size / _BLOCK)
        deltas = np.concatenate(
            [delta_at(block * grid) for block in np.array_split(points, blocks)]
        )
        # Rounding can make delta rise by 1e-16 with epsilon: raise those before it.
        deltas = np.maximum.accumulate(deltas[::-1])[::-1]
        return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
            grid, lower, upper, deltas
        )


def largest_loss(
    noise_multiplier: float, sampling_probability: float, group_size: int
) -> float:
    """Returns about the largest privacy loss that one update may have."""
    mixture = Mixture(noise_multiplier, sampling_probability, group_size)
    return float(mixture.log_ratio(mixture.highest))


def privacy_losses(
    *,
    noise_multiplier: float,
    sampling_probability: float,
    updates: int,
    group_size: int,
    grid: float,
) -> privacy_loss_distribution.PrivacyLossDistribution:
    """Returns an upper bound on what updates reveal about a group.

    Args:
      noise_multiplier: sigma, above 0, in units of one example's sensitivity.
      sampling_probability: q in (0, 1].
      updates: number of updates, 1 or more.
      group_size: m, 1 or more; examples added or removed together.
      grid: spacing of the privacy losses; all bounds hold, smaller ones are tighter.
    """
    if sampling_probability == 1:  # all examples are in every batch: one Gaussian
        return privacy_loss_distribution.from_gaussian_mechanism(
            noise_multiplier / (group_size * math.sqrt(updates)),
            value_discretization_interval=grid,
        )
    mixture = Mixture(noise_multiplier, sampling_probability, group_size)
    once = privacy_loss_distribution.PrivacyLossDistribution(
        mixture.removal(grid), mixture.addition(grid)
    )
    return once.self_compose(updates)
