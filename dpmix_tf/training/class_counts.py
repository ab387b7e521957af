"""Class weights from noised counts of the private records, charged to the ledger."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dpmix_tf.data import ExampleSource, PeopleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.counts import counts_plan, noised_counts
from dpmix_tf.tasks import MULTI_LABEL


class Counted(NamedTuple):
    """Class weights from one release of noised counts.

    Attributes:
      weights: one in (0, 1] per class; 1 for the rarest.
      ledger: what the release has spent.
    """

    weights: list[float]
    ledger: Ledger


def plan_of_counts(config: ConfigDict, num_examples: int, record: str):
    """The plan of the release that `privacy.class_counts_noise` asks for, or None."""
    noise = config.privacy.class_counts_noise
    if noise is None:
        return None
    if not noise > 0:
        raise DPMixError(
            f"privacy.class_counts_noise must be above 0, received: {noise}. Counts "
            "without noise have no guarantee."
        )
    return counts_plan(
        num_examples,
        noise,
        config.privacy.delta,
        accountant=config.privacy.accountant,
        record=record,
    )


def count_classes(
    config: ConfigDict, source: ExampleSource, plan: PrivacyPlan, seed: int
) -> Counted:
    """Counts the private records' classes with noise, and weighs rare ones more.

    A class's weight is the smallest count over its own, each count taken as at least
    twice the noise's standard deviation, so that noise alone makes no class rare.

    Args:
      config: see training/config.py.
      source: the private records.
      plan: from plan_of_counts.
      seed: the run's; of the noise, which serves this release alone.

    Raises:
      DPMixError: images have several labels, or weights are given too.
    """
    if source.task == MULTI_LABEL:
        raise DPMixError(
            "privacy.class_counts_noise is for one label per image, and these images "
            "have several. Leave it out."
        )
    if config.class_weights:
        raise DPMixError(
            "Both class_weights and privacy.class_counts_noise are given. Leave out "
            "one: public weights need no counts."
        )
    labels = source.examine().labels  # of people, person by person
    records = np.arange(len(source))
    if isinstance(source, PeopleSource):
        records = records.repeat([len(source.images_of(one)) for one in records])
    per_record = np.zeros((len(source), len(source.class_names)))
    np.add.at(per_record, (records, labels), 1)
    counts, spent = noised_counts(per_record, plan, seed)
    counts = np.maximum(counts, 2 * plan.noise_multiplier)
    return Counted((counts.min() / counts).tolist(), spent)
