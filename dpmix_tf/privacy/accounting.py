"""Epsilon, noise and updates of Poisson-sampled Gaussian updates, by dp_accounting.

One mechanism is accounted for: every example joins every batch independently with
probability q, the clipped gradients are summed, and Gaussian noise of standard
deviation noise_multiplier * clip_norm is added (Abadi et al. 2016, Algorithm 1).
Neighbouring data sets differ by one example added or removed, so the sensitivity is
clip_norm.

Accountants: "pld" composes privacy loss distributions numerically (Koskela et al. 2020,
Doroshenko et al. 2022; the tighter one), "rdp" uses Renyi divergences (Mironov 2017).
Both give upper bounds.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from dp_accounting import pld
from scipy import optimize

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import losses, selection
from dpmix_tf.privacy.selection import Part

ACCOUNTANTS = ("pld", "rdp")

# Calibration stops when the noise is within this relative distance of the smallest that
# keeps the target, always on the safe side.
_NOISE_TOLERANCE = 1e-4

# Where the search for noise gives up.
_MOST_NOISE = 1e5
# Where less noise would be enough: for a delta above the chance of joining any batch.
_LEAST_NOISE = 0.05


def epsilon(
    *,
    noise_multiplier: float,
    sampling_probability: float,
    updates: int,
    delta: float,
    accountant: str = "pld",
    group_size: int = 1,
) -> float:
    """Returns epsilon spent by `updates` updates.

    Args:
      noise_multiplier: standard deviation of the noise over the clip norm; 0 for none.
      sampling_probability: q in (0, 1].
      updates: number of updates, 0 or more.
      delta: in (0, 1).
      accountant: "pld" or "rdp".
      group_size: see composed_epsilon.

    Returns:
      Epsilon at `delta`; infinity without noise, 0 without updates.

    Raises:
      DPMixError: see composed_epsilon.
    """
    part = Part(noise_multiplier, sampling_probability, updates)
    parts = (part,) if updates else ()
    return composed_epsilon(parts, delta, accountant, group_size)


def composed_epsilon(
    parts: tuple[Part, ...], delta: float, accountant: str, group_size: int = 1
) -> float:
    """Returns epsilon of several series of updates on the same examples, together.

    Args:
      parts: see selection.Part.
      delta: in (0, 1), of the whole.
      accountant: "pld" or "rdp"; "pld" for groups, "rdp" for what was chosen among
        trials.
      group_size: how many examples are added or removed together, 1 or more.

    Returns:
      Epsilon at `delta`; infinity where a part has no noise, 0 without parts.

    Raises:
      DPMixError: the group's size or the accountant is refused, or the accountant's
        arithmetic fails.
    """
    check_group_size(group_size)
    if accountant not in ACCOUNTANTS:
        raise DPMixError(
            f"accountant must be one of {ACCOUNTANTS}, received: {accountant!r}."
        )
    if group_size > 1 and accountant != "pld":
        raise DPMixError(
            f"Epsilon of a group (group_size = {group_size}) is computed by the PLD "
            f'accountant only, received: {accountant!r}. Use accountant="pld", or '
            'ledger.epsilon(delta, "pld", group_size=...) of a trained model.'
        )
    if accountant != "rdp" and any(part.choice for part in parts):
        raise DPMixError(
            "The network was chosen among trials, whose cost is known by Renyi "
            f'divergences only; received: accountant="{accountant}", group_size='
            f'{group_size}. Use "rdp" (privacy.accountant), and no groups.'
        )
    return _composed_epsilon(parts, delta, accountant, int(group_size))


def check_group_size(group_size: int) -> None:
    """Raises DPMixError unless a group's size is a whole number, 1 or more."""
    whole = isinstance(group_size, (int, np.integer))
    if not whole or isinstance(group_size, bool) or group_size < 1:
        raise DPMixError(
            f"group_size must be a whole number, 1 or more, received: {group_size!r}."
        )


@functools.lru_cache(maxsize=4096)
def _composed_epsilon(
    parts: tuple[Part, ...], delta: float, accountant: str, group_size: int
) -> float:
    if not parts:
        return 0.0
    if any(part.noise_multiplier == 0 for part in parts):
        return math.inf
    with _failures_explained(parts, delta, accountant, group_size):
        if accountant == "pld":
            whole = losses.refined(parts, delta, group_size)
            return float(whole.get_epsilon_for_delta(delta))
        made = selection.accountants(parts)
        return max(float(each.get_epsilon(delta)) for each in made)


def composed_losses(
    parts: tuple[Part, ...], delta: float, group_size: int = 1, coarse: bool = False
) -> pld.privacy_loss_distribution.PrivacyLossDistribution:
    """Returns an upper bound on the privacy losses of several series of updates.

    Args:
      parts: see composed_epsilon; at least one, all of them with noise.
      delta: in (0, 1); the grid is as fine as epsilon at this delta needs it.
      group_size: how many examples are added or removed together, 1 or more.
      coarse: on one coarse grid, for searches: a looser bound, in less time.

    Returns:
      The distribution by which composed_epsilon computes epsilon at `delta`, unless it
      is to be coarse.

    Raises:
      DPMixError: the group's size is refused, or the arithmetic fails.
    """
    check_group_size(group_size)
    with _failures_explained(parts, delta, "pld", group_size):
        if coarse:
            grid = losses.REFINEMENT * losses.coarse_grid(parts, group_size)
            return losses.on_grid(parts, grid, group_size)
        return losses.refined(parts, delta, group_size)


@contextlib.contextmanager
def _failures_explained(
    parts: Sequence[Part], delta: float, accountant: str, group_size: int
) -> Iterator[None]:
    """Says for which mechanism an accountant's arithmetic failed, and what to do."""
    try:
        yield
    except (ValueError, OverflowError) as error:  # where very little or much is spent
        described = "; ".join(
            f"noise_multiplier = {noise:g}, sampling_probability = {probability:g}, "
            f"updates = {updates}" + (f", {choice}" if choice else "")
            for noise, probability, updates, choice in parts
        )
        advice = (
            "Use the other accountant."
            if group_size == 1
            else f"Use a smaller group than {group_size}, or more noise."
        )
        raise DPMixError(
            f"The {accountant.upper()} accountant cannot compute epsilon at {described}"
            f", delta = {delta:g}: {error} {advice}"
        ) from error


@functools.lru_cache(maxsize=512)
def privacy_curve(
    *, noise_multiplier: float, sampling_probability: float, updates: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns epsilons, float [n], and delta at each of them, by PLD.

    Together they are the trade-off curve between an attack's errors: whatever it does,
    its true positive rate is at most e^epsilon times its false one, plus delta (Dong,
    Roth and Su 2022, proposition 2.12).
    """
    # Coarser than for the guarantee, faster, and upper bounds all the same.
    loss = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_probability,
        value_discretization_interval=1e-3,
    ).self_compose(updates)
    epsilons = np.concatenate([[0.0], np.geomspace(1e-3, 30.0, 100)])
    return epsilons, np.asarray(loss.get_delta_for_epsilon(epsilons))


def noise_multiplier_for(
    *,
    target_epsilon: float,
    sampling_probability: float,
    updates: int,
    delta: float,
    accountant: str = "pld",
    besides: tuple[Part, ...] = (),
    choice: selection.Choice | None = None,
) -> float:
    """Returns the smallest noise multiplier that keeps epsilon at or below the target.

    The answer is within 0.01 % of the smallest and never below it: epsilon of the
    returned value, by the same accountant, is at most `target_epsilon`, together with
    what is spent `besides`, and with the `choice` among trials.

    Raises:
      DPMixError: no noise is enough, see composed_epsilon too.
    """
    if choice and selection.score_epsilon(choice, delta) > target_epsilon:
        raise DPMixError(
            f"Scoring trials with noise of {choice.score_noise} on the number of "
            f"validation records costs more than epsilon = {target_epsilon:g}. Raise "
            "privacy.score_noise, or leave it to bin/tune.py."
        )
    if besides and composed_epsilon(besides, delta, accountant) >= target_epsilon:
        raise DPMixError(
            f"What is released besides training spends all of epsilon = "
            f"{target_epsilon:g}. Give it more noise, or raise epsilon."
        )

    def spent(noise: float) -> float:
        part = Part(noise, sampling_probability, updates, choice)
        return composed_epsilon((part, *besides), delta, accountant)

    # Of many updates with much noise the sum is nearly Gaussian: this is about right.
    guess = 4 * sampling_probability * math.sqrt(updates) / target_epsilon
    guess = min(max(guess, 1.0), _MOST_NOISE)
    if accountant != "pld":
        return noise_reaching(spent, target_epsilon, guess)

    @functools.cache
    def coarse(noise: float) -> float:
        parts = [Part(noise, sampling_probability, updates), *besides]
        grid = losses.REFINEMENT * losses.coarse_grid(parts)
        return float(losses.on_grid(parts, grid).get_epsilon_for_delta(delta))

    # Coarse grids search, in a fraction of the time. How much they exaggerate changes
    # little with the noise, so that the fine ones have a few steps left to take.
    try:
        start = noise_reaching(coarse, target_epsilon, guess)
    except (DPMixError, ValueError):  # epsilons too small for a coarse grid
        return noise_reaching(spent, target_epsilon, guess)
    reached, seen = (
        max(each(start), target_epsilon / 1000) for each in (spent, coarse)
    )
    start = noise_reaching(coarse, target_epsilon * seen / reached, start)
    missed = abs(math.log(max(spent(start), target_epsilon / 1000) / target_epsilon))
    step = max(_NOISE_TOLERANCE / 2, missed)
    return noise_reaching(spent, target_epsilon, start, step)


def noise_reaching(
    spent: Callable[[float], float],
    target_epsilon: float,
    guess: float,
    step: float = 0.1,
) -> float:
    """Smallest noise with spent(noise) <= target, from above; `spent` falls.

    Looks near the guess first: `step`, of the noise's logarithm, grows as it walks on.
    """

    @functools.cache
    def excess(log_noise: float) -> float:
        return math.log(max(spent(math.exp(log_noise)), 1e-300) / target_epsilon)

    low = high = math.log(guess)
    while excess(high) > 0:
        low, high, step = high, high + step, step * 1.5
        if high > math.log(_MOST_NOISE * 2):
            raise DPMixError(
                f"No amount of noise reaches epsilon = {target_epsilon}: it is too "
                "small for this delta and accountant. Raise epsilon or delta, or use "
                "the other accountant."
            )
    while low == high or excess(low) <= 0:
        if low != high:
            high = low
        if high <= math.log(_LEAST_NOISE):
            return math.exp(high)
        low, step = low - step, step * 1.5
    if high - low <= _NOISE_TOLERANCE:
        return math.exp(high)
    root = optimize.brentq(excess, low, high, xtol=_NOISE_TOLERANCE / 4)
    while excess(root) > 0:
        root = min(high, root + _NOISE_TOLERANCE / 4)
    return math.exp(root)


def largest_integer(passes: Callable[[int], bool], limit: int) -> int:
    """Largest n in [0, limit] with passes(n), for a `passes` that turns false once."""
    low, high = 0, 1
    while high <= limit and passes(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low
