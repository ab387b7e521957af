"""What a guarantee means: how well any attack can tell who was in the training set.

A membership attack looks at everything that was published and says of one record "it
was in". Of records that were in it finds a share, its true-positive rate; of others it
accuses a share, its false-positive rate. The privacy profile, delta as a function of
epsilon, limits the one at every value of the other (Dong, Roth and Su 2022, Gaussian
Differential Privacy, proposition 2.12): for every epsilon >= 0,

  TPR <= e^epsilon FPR + delta,   1 - TPR >= e^-epsilon (1 - FPR - delta).

The least over all epsilons is the trade-off curve. One pair (epsilon, delta) gives a
weaker limit. The profile comes from the PLD accountant, whatever the plan's own one (of
what was chosen among trials, from Renyi divergences, which allow attacks more), and
covers both neighbours: records added and records removed. Every number here errs
on the side of an attack that is too strong.
"""

import contextlib
import dataclasses
import functools
import math
import warnings
from typing import Any

import numpy as np
from scipy import special

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import accounting, selection
from dpmix_tf.privacy.ledger import Ledger
from dpmix_tf.privacy.plan import PrivacyPlan, check_number

# What the accountant rounds, and the tails that it cuts off and counts as revealing
# everything, are some way below this.
PRECISION = 1e-10
_LEAST_DELTA = PRECISION / 10  # at which the profile ends
_ROUNDING = 1e-12  # of sums of the accountant's probabilities in float64, at most

RATES = (0.001, 0.01, 0.05)  # of false positives, at which attacks are reported

_POINTS = 10_001  # of the profile
_SEARCH_POINTS = 1_001
_MOST_MU = 1e6
_MU_TOLERANCE = 1e-6  # relative
_MOST_LOSS = 500.0  # e to the power of it is far from overflowing


@dataclasses.dataclass(frozen=True, eq=False)
class TradeOff:
    """The limit that a privacy profile sets to every membership attack.

    Attributes:
      epsilons: float64 [n], rising, 0 or more.
      deltas: float64 [n], an upper bound on delta at each of them.
    """

    epsilons: np.ndarray
    deltas: np.ndarray

    @classmethod
    def of_pair(cls, epsilon: float, delta: float) -> "TradeOff":
        """Returns what a single pair says, and nothing else is known.

        Args:
          epsilon: 0 or more; infinity where there is no guarantee.
          delta: in [0, 1].
        """
        if math.isinf(epsilon):
            epsilon, delta = 0.0, 1.0
        return cls(np.array([epsilon]), np.array([delta]))

    @property
    def guaranteed(self) -> bool:
        """Whether there is any limit at all."""
        return bool(self.deltas.min() < 1)

    def true_positive_rate(self, false_positive_rate: Any) -> Any:
        """Returns the largest true-positive rate of any attack, in [0, 1].

        Args:
          false_positive_rate: a number in [0, 1], or an array of them.

        Returns:
          A float for a number, float64 of the same shape for an array.

        Raises:
          DPMixError: a rate is not in [0, 1].
        """
        rates = np.asarray(false_positive_rate, np.float64)
        if not np.all((rates >= 0) & (rates <= 1)):
            raise DPMixError(
                f"A false-positive rate must be in [0, 1], received: "
                f"{false_positive_rate!r}."
            )

        def most(rate: float) -> float:
            with np.errstate(over="ignore", invalid="ignore"):
                few = np.exp(self.epsilons) * rate if rate else 0.0
                few = few + self.deltas
            many = 1 - np.exp(-self.epsilons) * (1 - self.deltas - rate)
            return float(np.clip(np.minimum(few, many).min(), rate, 1.0))

        found = np.array([most(float(rate)) for rate in rates.flat]).reshape(
            rates.shape
        )
        return found if rates.ndim else float(found)

    @property
    def advantage(self) -> float:
        """The largest difference of true- and false-positive rate, in [0, 1].

        One point of the profile limits it to tanh(epsilon / 2) + 2 delta / (1 +
        e^epsilon), where the two lines of the module's description meet.
        """
        weights = special.expit(-self.epsilons)
        limits = np.tanh(self.epsilons / 2) + 2 * self.deltas * weights
        return float(min(limits.min(), 1.0))

    @functools.cached_property
    def mu(self) -> float:
        """Gaussian differential privacy, to the accountant's precision.

        The smallest mu (rounded up) for which no attack's true-positive rate exceeds
        by more than PRECISION what it could be for telling N(0, 1) from N(mu, 1). By
        corollary 2.13 of Dong, Roth and Su (2022) that is one for which delta(epsilon)
        exceeds that of N(mu, 1) by at most PRECISION at every epsilon >= 0. Infinity
        where there is none. The curve's far ends, where attacks find almost nobody,
        decide: where few records join a batch, mu says less than the curve.
        """
        # Between two points delta is at most the left one's, N(mu, 1)'s at least the
        # right one's.
        deltas, epsilons = self.deltas[:-1], self.epsilons[1:]
        if self.epsilons[0] > 0 or self.deltas[-1] > PRECISION:
            return math.inf

        def enough(mu: float) -> bool:
            return bool(np.all(deltas <= _gaussian_deltas(mu, epsilons) + PRECISION))

        if np.all(deltas <= PRECISION):
            return 0.0
        low, high = 0.0, 1.0
        while not enough(high):
            low, high = high, 2 * high
            if high > _MOST_MU:
                return math.inf
        while high - low > _MU_TOLERANCE * high:
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def largest_loss(self, probability: float) -> float:
        """Returns the logarithm of the most by which what is published shifts odds.

        Odds are those of "it was in" against "it was not". What is published shifts
        them by more than the returned factor only with the given probability. That is
        somewhat more than epsilon at a delta of that size, which also holds in a weaker
        sense: for the loss L and every epsilon < l,
        P(L > l) (1 - exp(epsilon - l)) <= delta(epsilon).

        Args:
          probability: in (0, 1).

        Returns:
          float, 0 or more; infinity where there is no limit.
        """
        small = self.deltas < probability
        if not small.any():
            return math.inf
        shares = self.deltas[small] / probability
        return float(np.min(self.epsilons[small] - np.log1p(-shares)))

    def posterior(self, prior: float, probability: float) -> float:
        """Returns how sure one can become that a record was in.

        Args:
          prior: how sure one is before, in (0, 1).
          probability: see largest_loss.

        Returns:
          A probability in [prior, 1], exceeded with at most the given probability.
        """
        odds = math.log(prior) - math.log1p(-prior)
        return float(special.expit(odds + self.largest_loss(probability)))


def in_percent(share: float) -> str:
    """Rounded up, so that an attack is never shown weaker than it may be."""
    return f"{math.ceil(share * 10_000 - 1e-9) / 100:.2f} %"


def trade_off(ledger: Ledger, delta: float, group_size: int = 1) -> TradeOff:
    """Returns the limit to attacks on what was trained under a ledger.

    Args:
      ledger: what was spent; `Ledger.planned(plan)` for a plan.
      delta: in (0, 1). The accountant's grid is as fine as epsilon at this delta needs
        it; the result hardly depends on it.
      group_size: how many records are in or not together; attacks then ask for all of
        them.

    Returns:
      TradeOff; without noise one that allows everything.

    Raises:
      DPMixError: see Ledger.epsilon.
    """
    ledger.refuse_mixed_records()
    return _trade_off(ledger.parts(), delta, group_size, _POINTS)


@functools.lru_cache(maxsize=32)  # seconds each, and a card is made and checked
def _trade_off(
    parts: tuple[accounting.Part, ...],
    delta: float,
    group_size: int,
    points: int,
    coarse: bool = False,
) -> TradeOff:
    if any(part.noise_multiplier == 0 for part in parts):
        return TradeOff.of_pair(math.inf, 1.0)
    if not parts:
        return TradeOff.of_pair(0.0, 0.0)
    if any(part.choice for part in parts):
        return _of_choice(parts, group_size)
    losses = accounting.composed_losses(parts, delta, group_size, coarse)
    # Of very many updates the accountant may count more than that as revealing all.
    for least in _LEAST_DELTA * 10.0 ** np.arange(12):
        largest = losses.get_epsilon_for_delta(least) if least < 1 else 0.0
        if math.isfinite(largest):
            break
    epsilons = np.linspace(0.0, min(largest, _MOST_LOSS), points)
    deltas = losses.get_delta_for_epsilon(epsilons) + _ROUNDING
    return TradeOff(epsilons, np.clip(deltas, 0.0, 1.0))


def _of_choice(parts: tuple[accounting.Part, ...], group_size: int) -> TradeOff:
    """By Renyi divergences: the profile of what was chosen among trials.

    Raises:
      DPMixError: groups are asked for.
    """
    # At any delta: this refuses groups.
    accounting.composed_epsilon(parts, _LEAST_DELTA, "rdp", group_size)
    made = selection.accountants(parts)
    largest = max(float(each.get_epsilon(_LEAST_DELTA)) for each in made)
    epsilons = np.linspace(0.0, min(largest, _MOST_LOSS), _SEARCH_POINTS)
    deltas = [[each.get_delta(epsilon) for epsilon in epsilons] for each in made]
    return TradeOff(epsilons, np.clip(np.max(deltas, axis=0), 0.0, 1.0))


def _gaussian_deltas(mu: float, epsilons: np.ndarray) -> np.ndarray:
    """Delta of telling N(0, 1) from N(mu, 1) at epsilons [n] (Balle and Wang 2018)."""
    below = special.log_ndtr(-epsilons / mu - mu / 2)
    return special.ndtr(mu / 2 - epsilons / mu) - np.exp(epsilons + below)


def plan_for_attack(
    *,
    attack_success: float,
    at_fpr: float,
    delta: float,
    num_examples: int,
    expected_batch_size: float,
    updates: int,
    **settings,
) -> PrivacyPlan:
    """Finds the least noise that keeps every membership attack from succeeding.

    Args:
      attack_success: the largest true-positive rate allowed, in (at_fpr, 1).
      at_fpr: the false-positive rate at which it is allowed, in (0, 1).
      delta: see PrivacyPlan, as for the next three.
      num_examples: N.
      expected_batch_size: B.
      updates: number of updates.
      **settings: further fields of PrivacyPlan.

    Returns:
      A plan under which no attack exceeds `attack_success`, with less than 0.1 % more
      noise than needed; its `epsilon()` follows.

    Raises:
      DPMixError: a value is out of range, or no amount of noise is enough.
    """
    check_number("at_fpr", at_fpr, above=0.0, below=1.0)
    # Guessing already finds as many members as it accuses others.
    check_number("attack_success", attack_success, above=at_fpr, below=1.0)
    plan = PrivacyPlan(
        num_examples=num_examples,
        expected_batch_size=expected_batch_size,
        updates=updates,
        noise_multiplier=0.0,
        delta=delta,
        **settings,
    )

    # Without noise, an attack finds whoever has joined a batch, and guesses the rest.
    never = (1 - plan.sampling_probability) ** updates
    if plan.choice is None and attack_success >= 1 - never * (1 - at_fpr):
        raise DPMixError(
            f"{updates} updates at this batch size let no attack reach "
            f"{attack_success:g} at a false-positive rate of {at_fpr:g}, even without "
            "noise. Lower attack_success."
        )

    def success(noise: float, coarse: bool = False) -> float:
        part = plan.part()._replace(noise_multiplier=noise)
        curve = _trade_off((part,), float(delta), 1, _SEARCH_POINTS, coarse)
        return curve.true_positive_rate(at_fpr)

    # Many updates are nearly one Gaussian, whose mu is about q sqrt(T) / sigma.
    mu = special.ndtri(attack_success) - special.ndtri(at_fpr)
    guess = plan.sampling_probability * math.sqrt(updates) / mu
    guess, step = min(max(guess, 0.1), 1e3), 0.1
    with contextlib.suppress(DPMixError):  # too small for a coarse grid
        guess = accounting.noise_reaching(
            functools.partial(success, coarse=True), attack_success, guess
        )
        step = 1e-3
    try:
        noise = accounting.noise_reaching(success, attack_success, guess, step)
    except DPMixError as error:
        raise DPMixError(
            f"No amount of noise keeps attacks to a success of {attack_success:g} at "
            f"a false-positive rate of {at_fpr:g}, which is what guessing reaches: it "
            "is too close for the accountant. Raise attack_success."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # delta was warned about just above
        return dataclasses.replace(plan, noise_multiplier=noise)
