"""PoissonBatches: the batches that the privacy accountant assumes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dpmix_tf.data.sources import ExampleSource, check_labels, load_ahead
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan, randomness


class Batch(NamedTuple):
    """The examples of one update.

    Attributes:
      images: [n,H,W,C] of the source's dtype; n varies and may be 0.
      labels: int32 [n].
      ids: int64 [n], the examples' indices in the source; they key the views' draws.
      update: int64 scalar, the update that they were drawn for, counted from 0; None
        in batches of the user's own, which are taken as the next update's.
    """

    images: tf.Tensor
    labels: tf.Tensor
    ids: tf.Tensor
    update: tf.Tensor | None


def refuse_several_labels(source: ExampleSource) -> None:
    """Raises DPMixError if a source has several labels per image, for now."""
    # Batches of bare ids can be drawn of anything that has a length.
    if getattr(source, "multi_label", False):
        raise DPMixError(
            "The source has several labels per image (data.label_columns), expected "
            "one: training on several is not available yet. Choose one column of class "
            "names with data.label_column."
        )


class PoissonBatches:
    """Poisson-sampled batches of a source, one per update of the plan.

    Every example joins every batch independently with probability
    plan.sampling_probability, regardless of its position and of earlier draws; this is
    the sampling whose amplification the accountant computes. A batch depends only on
    the seed and the update's number, so starting at update t gives what an
    uninterrupted run would have drawn there.

    Example:
      model.fit(PoissonBatches(source, plan))

    Args:
      source: the private training examples.
      plan: the privacy plan; its num_examples must equal len(source).
      seed: secret; int in [0, 2**128); by default, 128 bits from the operating
        system.
      start: first update, counted from 0.

    Attributes:
      seed: the secret seed that the batches are drawn with.

    Raises:
      DPMixError: the source does not have the size that the plan was made for, or has
        several labels per image.
    """

    def __init__(
        self,
        source: ExampleSource,
        plan: PrivacyPlan,
        *,
        seed: int | None = None,
        start: int = 0,
    ):
        refuse_several_labels(source)
        if len(source) != plan.num_examples:
            raise DPMixError(
                f"The plan is for num_examples={plan.num_examples} and the source "
                f"holds {len(source)}: the guarantee would be for another data "
                "set. Make the plan with num_examples=len(source)."
            )
        if not 0 <= start <= plan.updates:
            raise DPMixError(
                f"start must be in [0, {plan.updates}], the plan's range of updates; "
                f"received: {start}."
            )
        self.source = source
        self.plan = plan
        self.start = start
        self.seed = randomness.as_seed(seed)
        self._stream = randomness.derive(self.seed, "sampling")

    def __len__(self) -> int:
        """Number of batches: the updates from `start` to the plan's last."""
        return self.plan.updates - self.start

    def starting_at(self, update: int, *, seed: int | None = None) -> "PoissonBatches":
        """Returns the same batches (or another seed's), starting at update `update`."""
        seed = self.seed if seed is None else seed
        return PoissonBatches(self.source, self.plan, seed=seed, start=update)

    def indices(self, update: int) -> np.ndarray:
        """Draws the examples of one batch, that of update `update` (counted from 0).

        The number of skipped examples between two that join is geometric. Drawing these
        gaps gives the same distribution as N coin flips of probability q, at a cost of
        the batch size instead of N (Devroye 1986, chapter X.2).

        Returns:
          Increasing int64 indices into the source; may be empty.
        """
        words = [int(word) & (2**64 - 1) for word in self._stream]
        generator = np.random.default_rng(
            np.random.SeedSequence(words, spawn_key=(update,))
        )
        count, probability = len(self.source), self.plan.sampling_probability
        mean = count * probability
        block = int(mean + 4 * mean**0.5) + 4  # rarely too few
        parts, last = [], -1
        while last < count:
            gaps = generator.geometric(probability, block)
            # Gaps beyond the end do not matter, and their sums could overflow.
            part = last + np.cumsum(np.minimum(gaps, count + 1))
            parts.append(part)
            last = int(part[-1])
        indices = np.concatenate(parts)
        return indices[: np.searchsorted(indices, count)]

    def dataset(
        self,
        *,
        replicas: range = range(1),
        num_replicas: int = 1,
        ids_only: bool = False,
        start: Callable[[], int] | None = None,
    ) -> tf.data.Dataset:
        """Returns a finite, prefetched tf.data.Dataset of Batch, with batch axes None.

        Args:
          replicas: the replicas to feed, out of num_replicas. Each update gives one
            element per replica, in order: every num_replicas-th example of its batch.
          num_replicas: how many replicas share a batch.
          ids_only: read nothing: images are [n,0], and labels 0.
          start: called each time an iteration over the dataset begins; returns the
            first update. By default, the attribute `start`.
        """
        source = self.source
        image_shape = (0,) if ids_only else source.image_shape
        spec = Batch(
            images=tf.TensorSpec([None, *image_shape], source.image_dtype),
            labels=tf.TensorSpec([None], tf.int32),
            ids=tf.TensorSpec([None], tf.int64),
            update=tf.TensorSpec([], tf.int64),
        )

        def load(element):
            update, place = divmod(int(element), len(replicas))
            ids = self.indices(update)[replicas[place] :: num_replicas]
            if ids_only:
                images = np.empty((len(ids), 0), source.image_dtype)
                return images, np.zeros(len(ids), np.int32), ids, np.int64(update)
            images, labels = source.read(ids)
            check_labels(labels, len(source.class_names))
            return images, labels.astype(np.int32), ids, np.int64(update)

        def elements(_):
            first = tf.numpy_function(
                lambda: np.int64(self.start if start is None else start()), [], tf.int64
            )
            return tf.data.Dataset.range(
                first * len(replicas), self.plan.updates * len(replicas)
            )

        each = tf.data.Dataset.from_tensors(0).flat_map(elements)
        return load_ahead(each, load, spec)

    def __iter__(self):
        """Iterates over `dataset()`."""
        return iter(self.dataset())
