"""Class counts with noise: one release by the Gaussian mechanism, charged as a plan.

How many examples have each label is private, unlike the number of examples and the
labels' names. Whoever needs the counts, for instance to weigh rare labels, takes them
from here and enters `counts_plan` in the ledger:

    counts = noised_counts(clipped_counts(one_hot), noise_multiplier=20.0, seed=seed)
    plan = counts_plan(len(one_hot), noise_multiplier=20.0, delta=1e-5)
    model.account.absorb(counts_ledger(plan))
"""

import secrets
from typing import Any

import numpy as np

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy.ledger import CLASS_COUNTS, Entry, Ledger
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
    counts: Any, *, noise_multiplier: float, seed: int, sensitivity: float = 1.0
) -> np.ndarray:
    """Returns counts with Gaussian noise, from the secret seed's stream "counts".

    The same seed draws the same noise, so that a resumed run repeats its release. For
    the same reason it may serve one release only: the difference of two, of different
    data, would have no noise in it.

    Formal guarantee: that of the Gaussian mechanism, as in the plan that `counts_plan`
    returns, if adding or removing one record changes `counts` by an L2 norm of at most
    `sensitivity`, and if the seed stays secret.

    Args:
      counts: [k], finite; see clipped_counts.
      noise_multiplier: standard deviation of the noise over `sensitivity`, 0 or more.
      seed: the run's, an int in [0, 2**128).
      sensitivity: above 0; 1 for one label per record, or for clipped counts.

    Returns:
      float64 [k]; may be negative.

    Raises:
      DPMixError: an argument is not as described.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1 or not np.all(np.isfinite(counts)):
        raise DPMixError(
            "counts must be finite numbers, one per label, received "
            f"{counts.dtype} of shape {counts.shape}. Use clipped_counts."
        )
    if not 0 <= noise_multiplier < np.inf:
        raise DPMixError(
            f"noise_multiplier must be finite, 0 or more, received: {noise_multiplier}."
        )
    if not 0 < sensitivity < np.inf:
        raise DPMixError(
            f"sensitivity must be finite and above 0, received: {sensitivity}."
        )
    words = [int(word) & (2**64 - 1) for word in randomness.derive(seed, "counts")]
    generator = np.random.default_rng(np.random.SeedSequence(words))
    noise = generator.normal(size=counts.shape)
    return counts + noise_multiplier * sensitivity * noise


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


def counts_ledger(plan: PrivacyPlan) -> Ledger:
    """Returns the ledger of one release of counts, which is never taken for another's.

    Args:
      plan: from counts_plan.
    """
    entry = Entry(
        run=f"class counts {secrets.token_hex(8)}",
        plan=plan,
        updates=1,
        conditions=frozenset({CLASS_COUNTS}),
    )
    return Ledger((entry,))
