"""PrivacyPlan: every number behind the guarantee, in one frozen value."""

import dataclasses
import math
import warnings
from typing import Any

import numpy as np

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import accounting
from dpmix_tf.privacy.selection import Choice, check_distribution
from dpmix_tf.values import hold_plain_values

CLIPPINGS = ("fixed", "automatic")

# What a plan protects: one image with its label, or one person with all of theirs.
EXAMPLE, PERSON = RECORDS = ("example", "person")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What a training run may do to one private example, and how often.

    The sampler, the clipping, the noise and the accountant all read this one value, so
    they cannot disagree.

    Example:
      >>> plan = PrivacyPlan.for_epsilon(
      ...     epsilon=8.0, delta=1e-5, num_examples=50_000, expected_batch_size=4096,
      ...     updates=2_400, accountant="rdp")
      >>> round(plan.noise_multiplier, 2)
      2.68

    Formal guarantee: publishing the weights after every one of `updates` updates is
    (epsilon(), delta)-differentially private under adding or removing one record.

    Attributes:
      num_examples: N, records in the training set: examples, or people. Taken as
        public.
      expected_batch_size: B, in (0, N]; the actual size of a batch varies around it.
      updates: number of noisy updates that the budget allows.
      noise_multiplier: sigma; the noise added to the sum has standard deviation
        sigma * sensitivity * clip_norm.
      delta: in (0, 1); should be well below 1 / num_examples.
      clip_norm: C in [1e-10, 1e10], L2 bound on one example's gradient over all
        variables together. Within these bounds its elements, sums of them and their
        noise stay far from the ends of float32 (1e-38 and 3e38).
      accountant: "pld" (tighter) or "rdp".
      clipping: "fixed": a gradient g longer than C is scaled to length C, a shorter one
        stays as it is. "automatic": every gradient becomes C g / (|g| + gamma) (Bu et
        al. 2022), always shorter than C; what C is then no longer matters except for
        the learning rate. The guarantee is the same.
      gamma: of automatic clipping, above 0, in units of the gradient's norm.
      sensitivity: how many clip norms one example can move the sum by, as the view
        maker says; 1 if every example has a gradient of its own.
      record: what is protected as a whole, and so sampled, clipped and counted as one:
        "example", an image with its label, or "person", with all their images.
      trials: above 1, the mean number of trainings among which this one is chosen, see
        privacy/selection.py: epsilon covers the choice (accountant "rdp" only).
      trials_distribution: of their number, which is drawn and stays secret: "poisson",
        "geometric" or "logarithmic".
      score_noise: standard deviation of the noise, in records, on the validation score
        by which one is chosen; None if validation records are public.
    """

    num_examples: int
    expected_batch_size: float
    updates: int
    noise_multiplier: float
    delta: float
    clip_norm: float = 1.0
    accountant: str = "pld"
    sensitivity: float = 1.0
    clipping: str = "fixed"
    gamma: float = 0.01
    record: str = EXAMPLE
    trials: float = 1.0
    trials_distribution: str = "poisson"
    score_noise: float | None = None

    def __post_init__(self) -> None:
        """Refuses values that would make the guarantee meaningless."""
        hold_plain_values(self)
        _check_whole("num_examples", self.num_examples, at_least=1)
        _check_whole("updates", self.updates, at_least=1)
        check_number("expected_batch_size", self.expected_batch_size, above=0.0)
        if self.expected_batch_size > self.num_examples:
            raise DPMixError(
                f"expected_batch_size ({self.expected_batch_size:g}) is larger than "
                f"num_examples ({self.num_examples}): a batch cannot be expected to "
                "hold more examples than exist. Lower the batch size."
            )
        check_number("noise_multiplier", self.noise_multiplier, at_least=0.0)
        check_number("clip_norm", self.clip_norm, at_least=1e-10, at_most=1e10)
        check_number("sensitivity", self.sensitivity, at_least=1.0)
        check_number("delta", self.delta, above=0.0, below=1.0)
        if self.accountant not in accounting.ACCOUNTANTS:
            raise DPMixError(
                f"accountant must be one of {accounting.ACCOUNTANTS}, received: "
                f"{self.accountant!r}."
            )
        if self.clipping not in CLIPPINGS:
            raise DPMixError(
                f"clipping must be one of {CLIPPINGS}, received: {self.clipping!r}."
            )
        check_number("gamma", self.gamma, at_least=1e-10, at_most=1e10)
        if self.record not in RECORDS:
            raise DPMixError(
                f"record must be one of {RECORDS}, received: {self.record!r}."
            )
        self._check_choice()
        if self.delta >= 1 / self.num_examples:
            warnings.warn(
                f"delta = {self.delta:g} is not below 1/num_examples = "
                f"{1 / self.num_examples:.3g}: a mechanism that publishes one example "
                "chosen at random would meet such a guarantee. Use a smaller delta.",
                stacklevel=3,
            )

    def _check_choice(self) -> None:
        check_number("trials", self.trials, at_least=1.0)
        check_distribution(self.trials_distribution)
        if self.score_noise is not None:
            check_number("score_noise", self.score_noise, above=0.0)
            if self.choice is None:
                raise DPMixError("score_noise is for trials above 1. Leave it out.")
        if self.choice and self.accountant != "rdp":
            raise DPMixError(
                f"What choosing among trials = {self.trials:g} costs is known by Renyi "
                f'divergences only: use accountant="rdp", not "{self.accountant}".'
            )

    @property
    def choice(self) -> Choice | None:
        """How the training is chosen among trials; None if it is the only one."""
        if self.trials == 1:
            return None
        return Choice(float(self.trials), self.trials_distribution, self.score_noise)

    @classmethod
    def for_epsilon(
        cls,
        *,
        epsilon: float,
        delta: float,
        num_examples: int,
        expected_batch_size: float,
        updates: int,
        clip_norm: float = 1.0,
        accountant: str = "pld",
        sensitivity: float = 1.0,
        clipping: str = "fixed",
        gamma: float = 0.01,
        record: str = EXAMPLE,
        trials: float = 1.0,
        trials_distribution: str = "poisson",
        score_noise: float | None = None,
        besides: "PrivacyPlan | None" = None,
    ) -> "PrivacyPlan":
        """Finds the least noise with which all updates cost at most `epsilon`.

        Args:
          epsilon: the budget, above 0.
          delta: see the class, as for the other arguments.
          num_examples: N.
          expected_batch_size: B.
          updates: number of updates.
          clip_norm: C.
          accountant: "pld" or "rdp".
          sensitivity: in clip norms.
          clipping: "fixed" or "automatic".
          gamma: of automatic clipping.
          record: "example" or "person".
          trials: mean number of trainings among which one is chosen.
          trials_distribution: of their number.
          score_noise: on validation scores, in records.
          besides: of another release from the same records, which epsilon covers too.

        Returns:
          A plan whose `epsilon()`, together with that of `besides`, is at most
          `epsilon`, with less than 0.1 % more noise than needed.
        """
        check_number("epsilon", epsilon, above=0.0)
        plan = cls(
            num_examples=num_examples,
            expected_batch_size=expected_batch_size,
            updates=updates,
            noise_multiplier=0.0,
            delta=delta,
            clip_norm=clip_norm,
            accountant=accountant,
            sensitivity=sensitivity,
            clipping=clipping,
            gamma=gamma,
            record=record,
            trials=trials,
            trials_distribution=trials_distribution,
            score_noise=score_noise,
        )
        noise_multiplier = accounting.noise_multiplier_for(
            target_epsilon=epsilon,
            sampling_probability=plan.sampling_probability,
            updates=updates,
            delta=delta,
            accountant=accountant,
            besides=() if besides is None else (besides.part(),),
            choice=plan.choice,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # delta was warned about just above
            return dataclasses.replace(plan, noise_multiplier=noise_multiplier)

    @property
    def sampling_probability(self) -> float:
        """The probability q with which each example joins each batch, independently."""
        return self.expected_batch_size / self.num_examples

    def epsilon(self, updates: int | None = None, *, group_size: int = 1) -> float:
        """Returns epsilon at `delta` after `updates` updates (default: all of them).

        Args:
          updates: 0 or more.
          group_size: how many examples are added or removed together: what holds for
            a person with at most so many examples. Above 1 by PLD only.

        Raises:
          DPMixError: updates or group_size are refused, or the arithmetic fails.
        """
        updates = self.updates if updates is None else int(updates)
        if updates < 0:
            raise DPMixError(f"updates must be 0 or more, received: {updates}.")
        parts = (self.part(updates),) if updates else ()
        return accounting.composed_epsilon(
            parts, float(self.delta), self.accountant, group_size
        )

    def part(self, updates: int | None = None) -> accounting.Part:
        """Returns what the accountant needs to know of some updates; default: all.

        A choice among trials looks at all updates of each, however many it publishes.
        """
        made = self.updates if updates is None or self.choice else updates
        return accounting.Part(
            float(self.noise_multiplier),
            float(self.sampling_probability),
            made,
            self.choice,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-able arguments of `PrivacyPlan`."""
        return dataclasses.asdict(self)


def finite_or_none(value: float) -> float | None:
    """Returns the value in a form that JSON can hold: None if infinite or NaN."""
    return value if math.isfinite(value) else None


def round_up(epsilon: float) -> str:
    """Returns epsilon with three decimals, never rounded down."""
    if math.isinf(epsilon):
        return "inf"
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def round_down(bound: float) -> str:
    """Returns a lower bound on epsilon with three decimals, never rounded up."""
    if math.isinf(bound):
        return "inf"
    return f"{math.floor(bound * 1000) / 1000:.3f}"


def _check_whole(name: str, value: Any, *, at_least: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise DPMixError(
            f"{name} must be a whole number, {at_least} or more, received: {value!r}."
        )


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raises DPMixError unless a value is a finite number within the given bounds."""
    wanted = [
        f"{words} {bound:g}"
        for words, bound in (
            ("above", above),
            ("at least", at_least),
            ("below", below),
            ("at most", at_most),
        )
        if bound is not None
    ]
    good = (
        isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if not good:
        raise DPMixError(
            f"{name} must be a finite number {' and '.join(wanted)}, received: "
            f"{value!r}."
        )
