"""What tuning inside the guarantee draws: the number of trials, and scores' noise."""

import math
from typing import Any

import numpy as np
from scipy import optimize

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import accounting, randomness
from dpmix_tf.privacy.counts import clipped_counts
from dpmix_tf.privacy.selection import Choice, score_epsilon


def draw_trials(choice: Choice, candidates: int) -> list[int]:
    """Draws, from the operating system, how many trials there are and what each tries.

    Args:
      choice: holds the distribution of the number.
      candidates: how many there are to draw from, 1 or more.

    Returns:
      Each trial's candidate, in [0, candidates), drawn independently of all others.
      Their number must stay secret.
    """
    generator = np.random.default_rng(randomness.fresh_seed())
    return generator.integers(candidates, size=_number(choice, generator)).tolist()


def _number(choice: Choice, generator: np.random.Generator) -> int:
    if choice.distribution == "poisson":
        return int(generator.poisson(choice.trials))
    if choice.distribution == "geometric":
        return int(generator.geometric(1 / choice.trials))

    def excess(log_gamma: float) -> float:  # of the mean, in the paper's terms
        return -math.expm1(-log_gamma) / log_gamma - choice.trials

    # gamma is 1 - p; its logarithm is searched, for p is close to 1.
    log_gamma = optimize.brentq(excess, -700.0, -1e-9)
    return int(generator.logseries(-math.expm1(log_gamma)))


def score_noise_for(
    epsilon: float, delta: float, trials: float, distribution: str
) -> float:
    """Returns the least noise with which scoring costs a validation record `epsilon`.

    Args:
      epsilon: above 0, of the whole choice.
      delta: in (0, 1).
      trials: mean number of trials, above 1.
      distribution: one of DISTRIBUTIONS.

    Returns:
      A standard deviation, in records; within 0.01 % of the least, never below it.

    Raises:
      DPMixError: no amount of noise is enough.
    """

    def spent(noise: float) -> float:
        return score_epsilon(Choice(trials, distribution, noise), delta)

    return accounting.noise_reaching(spent, epsilon, 4 / epsilon)


def noised_score(per_record: Any, choice: Choice, num_records: int) -> float:
    """Returns how well validation records were classified, with the choice's noise.

    The noise is new at every call: of one trial, look at one score only.

    Args:
      per_record: float [n], each record's score; what is outside [0, 1] is clipped,
        NaN counts as 0.
      choice: holds the noise's standard deviation; none if validation is public.
      num_records: n, taken as public.

    Returns:
      The noised sum over n; may lie outside [0, 1].

    Raises:
      DPMixError: there are not n records.
    """
    scores = np.asarray(per_record, np.float64)
    if scores.shape != (num_records,) or not num_records:
        raise DPMixError(
            f"A score needs a number for each of {num_records} validation records; "
            f"received shape {scores.shape}."
        )
    # Exact sums: one record changes it by its own score and nothing else.
    total = float(clipped_counts(np.maximum(scores, 0.0)[:, None])[0])
    if choice.score_noise is not None:
        generator = np.random.default_rng(randomness.fresh_seed())
        total += choice.score_noise * generator.normal()
    return total / num_records
