"""Class counts with noise: one release by the Gaussian mechanism, charged as a plan.

How many examples have each label is private, unlike the number of examples and the
labels' names. Whoever needs the counts, for instance to weigh rare labels, takes them
from here, and the ledger charges them:

    plan = counts_plan(len(one_hot), noise_multiplier=20.0, delta=1e-5)
    counts, spent = noised_counts(one_hot, plan)
    model.account.absorb(spent)
"""

import secrets
from typing import Any

import numpy as np

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy.ledger import (
    CHOSEN,
    CHOSEN_SEED,
    CLASS_COUNTS,
    SHARED,
    SHARED_SEED,
    Entry,
    Ledger,
)
from dpmix_tf.privacy.plan import EXAMPLE, PrivacyPlan

# Clipped records are multiples of this, so that up to 2^29 of them add up in float64
# without rounding: removing one changes the sum by that record, exactly.
_UNIT = 2.0**-24


def clipped_counts(per_record: Any) -> np.ndarray:
    """Clips each record's counts to L2 norm 1 and adds them up.

    Args:
      per_record: [n,k], how often each of n records (examples, or people) has each of
        k labels. For examples with one label, these are 1 and 0 and stay as they are.
        A record with NaN or infinity counts as nothing.

    Returns:
      float64 [k]. Adding or removing one record changes it by an L2 norm of at most 1.

    Raises:
      DPMixError: per_record does not have two axes.
    """
    records = np.asarray(per_record, np.float64)
    if records.ndim != 2:
        raise DPMixError(
            f"per_record must be [records,labels], received shape {records.shape}."
        )
    records = np.where(np.isfinite(records).all(axis=1, keepdims=True), records, 0.0)
    # First by the largest element, whose square could overflow.
    largest = np.abs(records).max(axis=1, keepdims=True, initial=1.0)
    norms = np.linalg.norm(records / largest, axis=1, keepdims=True)
    clipped = records / largest / np.maximum(norms, 1 / largest)
    # Towards zero. The squares of such multiples add up to at most 1, or to 1 + 2^-48
    # and more: what roundings above added to the norm is gone.
    return np.sum(np.trunc(clipped / _UNIT) * _UNIT, axis=0)


def noised_counts(
    per_record: Any, plan: PrivacyPlan, seed: int | None = None
) -> tuple[np.ndarray, Ledger]:
    """Counts records' labels, with Gaussian noise; says what that has spent.

    The noise is the secret seed's stream "counts": the same seed draws the same noise,
    so that a run repeats its release. For the same reason a seed may serve one release
    only: the difference of two, of different data, would have no noise in it.

    Formal guarantee: that of `plan`, if the seed stays secret.

    Args:
      per_record: see clipped_counts.
      plan: from counts_plan; its noise_multiplier is the noise's standard deviation.
      seed: an int in [0, 2**128); by default 128 bits from the operating system.

    Returns:
      float64 [k], some of which may be negative; the ledger of this release, to be
      absorbed by a model's account or joined with another ledger.

    Raises:
      DPMixError: there are not as many records as the plan is for, or an argument is
        not as described.
    """
    counts = clipped_counts(per_record)
    if len(per_record) != plan.num_examples:
        raise DPMixError(
            f"The plan is for num_examples={plan.num_examples}, and per_record has "
            f"{len(per_record)} rows. Make the plan with counts_plan(len(per_record), "
            "...)."
        )
    seed = randomness.as_seed(seed)
    generator = randomness.generator(seed, "counts")
    noise = plan.noise_multiplier * generator.normal(size=counts.shape)
    origin = {CHOSEN: CHOSEN_SEED, SHARED: SHARED_SEED}.get(seed.origin)
    entry = Entry(
        run=f"class counts {secrets.token_hex(8)}",  # never taken for another release
        plan=plan,
        updates=1,
        conditions=frozenset({CLASS_COUNTS, *([origin] if origin else [])}),
    )
    return counts + noise, Ledger((entry,))


def counts_plan(
    num_examples: int,
    noise_multiplier: float,
    delta: float,
    *,
    accountant: str = "pld",
    record: str = EXAMPLE,
) -> PrivacyPlan:
    """Returns the plan of one release of `noised_counts`, to be entered in a ledger.

    It is one update whose batch is all examples. Composition with training is then the
    ledger's own.

    Args:
      num_examples: N, taken as public.
      noise_multiplier: as of noised_counts.
      delta: in (0, 1).
      accountant: "pld" or "rdp".
      record: what was counted: "example" or "person".

    Raises:
      DPMixError: see PrivacyPlan.
    """
    return PrivacyPlan(
        num_examples=num_examples,
        expected_batch_size=num_examples,
        updates=1,
        noise_multiplier=noise_multiplier,
        delta=delta,
        accountant=accountant,
        record=record,
    )
