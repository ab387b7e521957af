"""Test accuracy with noise, where those on whom a model is tested are private too.

The number of test records that are classified correctly is one release by the Gaussian
mechanism. Test records are not training records: what the release costs them is stated
apart, and adds nothing to the training records' epsilon.
"""

import hashlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dpmix_tf.data import Dataset, ExampleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan, randomness
from dpmix_tf.privacy.counts import clipped_counts, counts_plan
from dpmix_tf.privacy.ledger import CHOSEN, SHARED
from dpmix_tf.privacy.plan import PERSON, finite_or_none
from dpmix_tf.privacy.statement import seed_origin
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training.evaluation import Score, record_scores


def plan_of_report(
    config: ConfigDict, dataset: Dataset, origin: str
) -> PrivacyPlan | None:
    """Returns the plan of the release that `report.noise` asks for, or None.

    Args:
      config: see training/config.py.
      dataset: the test records are examples or people, as the training records are.
      origin: of the run's seed.

    Raises:
      DPMixError: the noise is not above 0; images have several labels; people are to
        be protected, and it is not known whose each test image is; or other runs share
        the seed, and so the noise.
    """
    noise, test = config.report.noise, dataset.test
    if noise is None or not config.run.test:
        return None
    if not noise > 0:
        raise DPMixError(
            f"report.noise must be above 0, received: {noise}. Leave it out to report "
            "test figures without noise."
        )
    if dataset.task == MULTI_LABEL:
        raise DPMixError(
            "report.noise is for one label per image, and these images have several. "
            "Leave it out and keep the test figures to yourself, or set "
            "run.test=False and measure none."
        )
    if origin == SHARED:
        raise DPMixError(
            "report.noise needs a seed of the run's own: runs that share a seed would "
            "add the same noise, which their difference takes away. Leave out "
            "shared_seed or report.noise."
        )
    record, count = dataset.train.record, len(test.examples)
    if record == PERSON:
        if test.people is None:
            raise DPMixError(
                "report.noise protects test people, and it is not known whose each "
                "test image is. Give test examples with people, or leave it out."
            )
        count = len(np.unique(test.people))  # of a PeopleSource, one name per record
    return counts_plan(
        count,
        noise,
        config.privacy.delta,
        accountant=config.privacy.accountant,
        record=record,
    )


def noised_accuracy(
    score: Score, test: ExampleSource, plan: PrivacyPlan, seed: int
) -> dict[str, Any]:
    """Returns the only test figure of a run whose test records are private.

    What is noised is the sum of the records' scores: 1 for an image classified
    correctly, for a person the fraction of theirs that are. The noise follows from the
    secret seed and from these scores: a resumed run that finds the same repeats its
    release, and none that finds others uses the same noise again.

    Formal guarantee: that of `plan`, for the test records, if the seed stays secret.

    Args:
      score: of the averaged weights on `test`.
      test: the test records.
      plan: from plan_of_report.
      seed: the run's.

    Returns:
      "test_accuracy_noised", in [0, 1]: that sum with noise, over the number of test
      records, which is taken as public.
    """
    scores = record_scores(score, test, plan.record)
    purpose = f"test accuracy/{hashlib.sha256(scores.tobytes()).hexdigest()}"
    noise = plan.noise_multiplier * randomness.generator(seed, purpose).normal()
    found = clipped_counts(scores[:, np.newaxis]).item() + noise
    return {"test_accuracy_noised": float(np.clip(found / plan.num_examples, 0, 1))}


def describe_release(plan: PrivacyPlan, ledger: Ledger) -> dict[str, Any]:
    """Returns what the release costs the test records, for privacy.json and the card.

    Args:
      plan: from plan_of_report.
      ledger: of the training; says who drew the seed, which is the noise's too.
    """
    known = seed_origin(ledger) == CHOSEN
    return {
        "noise": plan.noise_multiplier,
        "epsilon": None if known else finite_or_none(plan.epsilon()),
        "delta": plan.delta,
        "accountant": plan.accountant,
        "record": plan.record,
        "records": plan.num_examples,
    }
