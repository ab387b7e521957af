"""Privacy losses of Poisson-sampled Gaussian updates, composed on a grid fine enough.

Of neighbouring data sets the loss is the logarithm of the outputs' likelihood ratio.
dp_accounting composes its distribution numerically (Koskela et al. 2020, Doroshenko et
al. 2022) and rounds it to a grid, always to the safe side.
"""

import math
from collections.abc import Sequence

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from dpmix_tf.privacy import groups
from dpmix_tf.privacy.selection import Part

# PLD rounds privacy losses to a grid, always to the safe side. The finest one is
# dp_accounting's default. Where one update's losses range widely (little noise), a grid
# of some thousand points is as tight, and a hundred times faster to fill.
_FINEST_GRID = 1e-4
_FEWEST_POINTS = 4096
_GRID_TOLERANCE = 1e-4
REFINEMENT = 4  # a power of two, so that the points of every grid are the next one's


def refined(
    parts: Sequence[Part], delta: float, group_size: int = 1
) -> PrivacyLossDistribution:
    """Returns the losses on ever finer grids, until that changes epsilon no more.

    A grid's points are among the finer ones', so that its epsilon is the larger one:
    each is an upper bound, and refining only tightens it.

    Args:
      parts: series of updates, all of them with noise, none chosen among trials.
      delta: in (0, 1), at which epsilon is compared.
      group_size: how many examples are added or removed together, 1 or more.
    """
    grid = coarse_grid(parts, group_size)
    losses = on_grid(parts, grid, group_size)
    spent = losses.get_epsilon_for_delta(delta)
    while grid > _FINEST_GRID and math.isfinite(spent):
        coarser, grid = spent, grid / REFINEMENT
        losses = on_grid(parts, grid, group_size)
        spent = losses.get_epsilon_for_delta(delta)
        if coarser - spent <= _GRID_TOLERANCE * spent:
            break
    return losses


def on_grid(
    parts: Sequence[Part], grid: float, group_size: int = 1
) -> PrivacyLossDistribution:
    """Returns the losses of all parts together, on one grid.

    Args:
      parts: series of updates, all of them with noise, none chosen among trials.
      grid: spacing of the losses; all bounds hold, smaller ones are tighter.
      group_size: how many examples are added or removed together, 1 or more.
    """
    whole = privacy_loss_distribution.identity(grid)
    for noise_multiplier, sampling_probability, updates, _ in parts:
        if group_size == 1 and sampling_probability < 1:
            losses = privacy_loss_distribution.from_gaussian_mechanism(
                noise_multiplier,
                sampling_prob=sampling_probability,
                value_discretization_interval=grid,
            ).self_compose(updates)
        else:
            losses = groups.privacy_losses(
                noise_multiplier=noise_multiplier,
                sampling_probability=sampling_probability,
                updates=updates,
                group_size=group_size,
                grid=grid,
            )
        whole = whole.compose(losses)
    return whole


def coarse_grid(parts: Sequence[Part], group_size: int = 1) -> float:
    """The coarsest grid that has a few thousand points for every part."""
    longest = 0.0
    for noise_multiplier, probability, updates, _ in parts:
        if group_size > 1 and probability < 1:
            largest = groups.largest_loss(noise_multiplier, probability, group_size)
            longest = max(longest, largest)
            continue
        noise_multiplier = noise_multiplier / group_size
        # Beyond ten standard deviations, dp_accounting cuts the tails off too.
        noise = noise_multiplier / (math.sqrt(updates) if probability == 1 else 1)
        unsampled = 0.5 / noise**2 + 10 / noise
        largest = np.logaddexp(math.log(probability) + unsampled, 0.0)
        longest = max(longest, float(largest))
    points = longest / _FINEST_GRID / _FEWEST_POINTS
    return _FINEST_GRID * REFINEMENT ** math.ceil(math.log(max(points, 1.0), 4))
