"""Choosing the best of several trainings, at a price that is known beforehand.

Publishing the best of a number of trainings that was fixed beforehand costs up to that
many times as much. If the number is drawn at random and kept secret, it costs little
more than one (Liu and Talwar 2019; Papernot and Steinke 2022, Hyperparameter Tuning
with Renyi Differential Privacy, theorems 2 and 6), because nobody can tell for which
training a record made the difference.

One *trial* draws a candidate, uniformly and independently of all data, trains with it
under noise of its own and is scored on validation records. What is published is the
best trial: its weights, its settings, its score. A record is trained on or scored,
never both, so that a trial costs it the one or the other. For a record that is scored,
the score must have noise: it is added to a sum to which each record contributes a
number in [0, 1].
"""

import itertools
import math
from typing import NamedTuple

from dp_accounting import dp_event, rdp

from dpmix_tf.errors import DPMixError

# Distributions of the number of trials, by the `shape` that dp_accounting gives them.
# Only the Poisson distribution may draw none.
DISTRIBUTIONS = {"poisson": math.inf, "geometric": 1.0, "logarithmic": 0.0}


def check_distribution(name: str) -> None:
    """Raises DPMixError unless a distribution of the number of trials is known."""
    if name not in DISTRIBUTIONS:
        raise DPMixError(
            f"trials_distribution must be one of {', '.join(DISTRIBUTIONS)}, received: "
            f"{name!r}."
        )


class Choice(NamedTuple):
    """How a training was chosen among trials.

    Attributes:
      trials: mean number of trials, above 1.
      distribution: of the number, one of DISTRIBUTIONS.
      score_noise: standard deviation of the noise on the sum of validation records'
        scores, above 0; None if validation records are public.
    """

    trials: float
    distribution: str
    score_noise: float | None


class Part(NamedTuple):
    """Updates made alike on the same records, one after the other.

    Attributes:
      noise_multiplier: standard deviation of the noise over the sensitivity.
      sampling_probability: q in (0, 1].
      updates: 1 or more; of one trial, if it was chosen.
      choice: how it was chosen; None if it was the only one.
    """

    noise_multiplier: float
    sampling_probability: float
    updates: int
    choice: Choice | None = None


def _update_event(
    noise_multiplier: float, sampling_probability: float
) -> dp_event.DpEvent:
    """One update."""
    event = dp_event.GaussianDpEvent(noise_multiplier)
    if sampling_probability < 1:
        return dp_event.PoissonSampledDpEvent(sampling_probability, event)
    return event


def accountants(parts: tuple[Part, ...]) -> list[rdp.RdpAccountant]:
    """Returns accountants that have composed all parts, by Renyi divergences.

    Several, because records differ in what was done to them: one that some trial
    trained on was scored by none of the same choice. The guarantee is the worst.
    """
    made = []
    for events in itertools.product(*(_events(part) for part in parts)):
        accountant = rdp.RdpAccountant()
        for event in events:
            accountant.compose(event)
        made.append(accountant)
    return made


def _events(part: Part) -> list[dp_event.DpEvent]:
    """What a part may have done to a record."""
    trained = dp_event.SelfComposedDpEvent(
        _update_event(part.noise_multiplier, part.sampling_probability), part.updates
    )
    if part.choice is None:
        return [trained]
    events = [_chosen(trained, part.choice)]
    if part.choice.score_noise is not None:
        events.append(_scored(part.choice))
    return events


def _scored(choice: Choice) -> dp_event.DpEvent:
    """What a choice may have done to a validation record."""
    return _chosen(dp_event.GaussianDpEvent(choice.score_noise), choice)


def _chosen(event: dp_event.DpEvent, choice: Choice) -> dp_event.DpEvent:
    shape = DISTRIBUTIONS[choice.distribution]
    return dp_event.RepeatAndSelectDpEvent(event, mean=choice.trials, shape=shape)


def score_epsilon(choice: Choice, delta: float) -> float:
    """Returns epsilon of the choice for a validation record, at `delta`; 0 if public.

    Args:
      choice: how one of the trials is chosen.
      delta: in (0, 1).
    """
    if choice.score_noise is None:
        return 0.0
    accountant = rdp.RdpAccountant()
    accountant.compose(_scored(choice))
    return float(accountant.get_epsilon(delta))
