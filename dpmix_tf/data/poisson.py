"""PoissonBatches: the batches that the privacy accountant assumes."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dpmix_tf.data.sources import ExampleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan, randomness


class Batch(NamedTuple):
    """The examples of one update.

    Attributes:
      images: [n,H,W,C] of the source's dtype; n varies and may be 0.
      labels: int32 [n].
      ids: int64 [n], the examples' indices in the source; key of their views' draws.
    """

    images: tf.Tensor
    labels: tf.Tensor
    ids: tf.Tensor


class PoissonBatches:
    """Poisson-sampled batches of a source, one an update of the plan.

    Every example joins every batch independently with probability
    plan.sampling_probability, whatever its position and whatever was drawn before; this
    is the sampling whose amplification the accountant computes. A batch's draw depends
    only on the seed and the update's number, so starting at update t gives what an
    uninterrupted run would have drawn there.

    Example:
      model.fit(PoissonBatches(source, plan))

    Args:
      source: the private training examples.
      plan: num_examples must equal len(source).
      seed: secret; int in [0, 2**128), default 128 bits from the operating system.
      start: first update, counted from 0.

    Raises:
      DPMixError: the source is not the size that the plan was made for.
    """

    def __init__(
        self,
        source: ExampleSource,
        plan: PrivacyPlan,
        *,
        seed: int | None = None,
        start: int = 0,
    ):
        if len(source) != plan.num_examples:
            raise DPMixError(
                f"The plan is for num_examples={plan.num_examples} and the source "
                f"holds {len(source)}: the guarantee would be for another data "
                "set. Make the plan with num_examples=len(source)."
            )
        if not 0 <= start <= plan.updates:
            raise DPMixError(
                f"start must be in [0, {plan.updates}], the plan's updates; received: "
                f"{start}."
            )
        self.source = source
        self.plan = plan
        self.start = start
        self._seed = randomness.fresh_seed() if seed is None else seed
        self._stream = randomness.derive(self._seed, "sampling")

    def __len__(self) -> int:
        """Number of batches: the updates from `start` to the plan's last."""
        return self.plan.updates - self.start

    def starting_at(self, update: int) -> "PoissonBatches":
        """Returns the same batches from the `update`-th (from 0) on."""
        return PoissonBatches(self.source, self.plan, seed=self._seed, start=update)

    def indices(self, update: int) -> np.ndarray:
        """Draws the examples of the `update`-th batch (from 0).

        N independent coins with probability q show Binomial(N, q) heads, and given
        their number every set of that size is equally likely: drawing the number, then
        the set, is the same law and costs the batch's size instead of N.

        Returns:
          Increasing int64 indices into the source; there may be none.
        """
        words = [int(word) & (2**64 - 1) for word in self._stream]
        generator = np.random.default_rng(
            np.random.SeedSequence(words, spawn_key=(update,))
        )
        count = len(self.source)
        size = generator.binomial(count, self.plan.sampling_probability)
        return np.sort(generator.choice(count, size, replace=False, shuffle=False))

    def dataset(self) -> tf.data.Dataset:
        """Returns a finite, prefetched tf.data.Dataset of Batch, batch axes None."""
        source, classes = self.source, len(self.source.class_names)
        spec = Batch(
            images=tf.TensorSpec([None, *source.image_shape], source.image_dtype),
            labels=tf.TensorSpec([None], tf.int32),
            ids=tf.TensorSpec([None], tf.int64),
        )

        def load(update):
            ids = self.indices(int(update))
            images, labels = source.read(ids)
            if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
                raise DPMixError(
                    f"The source has {classes} classes and gave labels from "
                    f"{labels.min()} to {labels.max()}."
                )
            return images, labels.astype(np.int32), ids

        def to_batch(update):
            parts = tf.numpy_function(load, [update], [part.dtype for part in spec])
            return Batch(
                *(
                    tf.ensure_shape(part, part_spec.shape)
                    for part, part_spec in zip(parts, spec, strict=True)
                )
            )

        return (
            tf.data.Dataset.range(self.start, self.plan.updates)
            .map(to_batch, num_parallel_calls=2, deterministic=True)
            .prefetch(2)
        )

    def __iter__(self):
        """Iterates over `dataset()`."""
        return iter(self.dataset())
