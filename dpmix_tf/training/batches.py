"""Chooses the batches that `fit` trains on; prepares this process's part of them."""

from typing import Any

import keras
import tensorflow as tf

from dpmix_tf.data import Batch, ExampleSource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import ledger, randomness
from dpmix_tf.privacy.plan import EXAMPLE, PERSON
from dpmix_tf.training import cluster
from dpmix_tf.training.checks import check_source
from dpmix_tf.training.private_step import PrivateStep
from dpmix_tf.views import EncodedViews


def choose_batches(
    x: Any, step: PrivateStep, strategy: tf.distribute.Strategy, *, assume_poisson: bool
) -> tuple[Any, int]:
    """Returns the data that Keras's fit is to train on.

    Args:
      x: what the user passed to DPMixModel.fit.
      step: makes the updates. The data starts at its account's next one.
      strategy: each of its replicas gets a part of every batch.
      assume_poisson: see DPMixModel.fit.

    Returns:
      Elements of `Batch`, one per update and replica; and the largest number of updates
      that can be made with them.

    Raises:
      DPMixError: the guarantee would not hold with these batches.
    """
    left = step.plan.updates - step.account.next
    if isinstance(x, ExampleSource):
        x = PoissonBatches(x, step.plan, seed=step.seed)
    if isinstance(x, PoissonBatches):
        return _own_part(x, step, strategy), left
    if assume_poisson and isinstance(x, tf.data.Dataset):
        if step.views.encoded:
            raise DPMixError(
                "Encoded views are found by an example's number in its source, which "
                "batches of your own do not have. Give fit the source, or train on "
                "views that are not encoded."
            )
        if strategy.num_replicas_in_sync > 1:
            raise DPMixError(
                "Only a source or PoissonBatches can be split among several "
                f"replicas; received: {type(x).__name__}."
            )
        data = _as_promised(x, step.plan.record)
        step.account.note(ledger.UNCHECKED_SAMPLING)
        available = int(data.cardinality())
        if available >= 0:
            return data, available
        return data.take(left), left  # unknown length: ends with the budget
    raise DPMixError(
        "fit needs a source, or batches that were drawn by the plan's sampler: "
        f"PoissonBatches(source, plan); received: {type(x).__name__}. The accountant "
        "assumes Poisson sampling; shuffled or fixed batches do not qualify. If your "
        "tf.data.Dataset is Poisson-sampled, pass assume_poisson=True."
    )


def _own_part(
    batches: PoissonBatches, step: PrivateStep, strategy: tf.distribute.Strategy
):
    """This process's part of the batches; all processes use the first one's seed."""
    if batches.plan != step.plan:
        raise DPMixError(
            "The batches were drawn by another plan than the model's: "
            f"{batches.plan} instead of {step.plan}."
        )
    image_shape = tuple(step.network.input_shape[1:])
    classes = int(step.network.output_shape[-1])
    check_source(batches.source, step.views, step.task, image_shape, classes)
    if isinstance(step.views, EncodedViews):
        step.views.refuse_other_examples(batches.source)
    if batches.seed.origin == randomness.CHOSEN:
        step.account.note(ledger.CHOSEN_SEED)
    with cluster.lost_workers_reported(strategy):
        seed = cluster.seed_from_chief(strategy, batches.seed)
    batches = batches.starting_at(step.account.next, seed=seed)
    return cluster.share_out(
        strategy,
        batches,
        start=lambda: step.account.next,
        ids_only=step.views.encoded,
    )


def _as_promised(data: tf.data.Dataset, record: str) -> tf.data.Dataset:
    """The user's own batches, which the user vouches for, as elements of `Batch`."""
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data.element_spec)
    if labels is None:
        raise DPMixError(
            "fit needs batches of (images, labels); the dataset's elements are: "
            f"{images}."
        )
    if weights is not None:
        raise DPMixError("Batches take no sample weights: every example counts once.")
    axes = {EXAMPLE: 4, PERSON: 5}[record]
    if images.shape.rank != axes:
        shape = {EXAMPLE: "[n,H,W,C]", PERSON: "[n,slots,H,W,C]"}[record]
        raise DPMixError(
            f"The plan protects one {record}, whose images in a batch have shape "
            f"{shape}; the dataset's have shape {images.shape}."
        )

    def number(images, labels):
        ids = tf.range(tf.shape(images, tf.int64)[0])
        return Batch(images, labels, ids, update=None)

    return data.map(number)
