"""Canaries: records that a fair coin includes in a training run or leaves out.

Two kinds are trained on alongside the private examples:

- Image canaries go through the whole pipeline: mislabelled images, and images of noise.
  The attack sees the finished network and scores them by their loss (black box).
- Gradient canaries have a gradient that is nonzero at a single weight of the network
  and ten times as long as the clip norm. They go through sampling, clipping, summing
  and noise, and move the sum by as much as the plan allows one example to: the clip
  norm times the plan's sensitivity. The attack knows everything but the coins, the
  sampling and the noise, and sees every noisy sum. It scores them by the likelihood
  ratio of what it sees at that weight (white box; Nasr et al. 2023, section 4.2, call
  it a Dirac canary).

A canary that is left out is drawn like the others and then dropped, so that nothing
else depends on the coin.
"""

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.data import Batch, Dataset, ExampleSource
from dpmix_tf.data.sources import label_spec
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.clipping import ClippedSum
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training.private_step import PrivateStep, Release
from dpmix_tf.views import ViewMaker

_CANARY_LENGTH = 10.0  # clip norms, so that clipping takes effect
_RECORDS_HELD = 16_000_000  # numbers held at once while gradient canaries are added


class CanarySource(ExampleSource):
    """Private records, then image canaries, then gradient canaries (black images).

    Among people, a canary is a person with a single image.

    Args:
      source: the private examples, or people.
      images: the image canaries, uint8 or float [n,H,W,C], as in the source.
      labels: int [n], of the image canaries.
      gradients: number of gradient canaries.
    """

    def __init__(
        self,
        source: ExampleSource,
        images: np.ndarray,
        labels: np.ndarray,
        gradients: int,
    ):
        self._source = source
        blank = np.zeros((gradients, *source.image_shape), source.image_dtype)
        self._images = np.concatenate([images.astype(source.image_dtype), blank])
        kind = label_spec(source, [gradients])
        blank = np.zeros(kind.shape)
        labels = np.reshape(labels, [-1, *blank.shape[1:]])
        self._labels = np.concatenate([labels, blank]).astype(kind.dtype.as_numpy_dtype)
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.image_dtype = source.image_dtype
        self.record, self.slots = source.record, source.slots
        self.task = source.task

    def __len__(self) -> int:
        """Number of records, canaries included."""
        return len(self._source) + len(self._labels)

    def read(self, indices):
        """Reads records and canaries, as at the first turn of a public draw."""
        indices = np.asarray(indices, np.int64)
        return self.draw(indices, np.zeros(2, np.int64), np.zeros_like(indices))

    def draw(self, ids, key, turns):
        """Reads records and canaries."""
        canaries = ids - len(self._source)
        ours = canaries >= 0
        slots = () if self.slots is None else (self.slots,)
        images = np.empty((len(ids), *slots, *self.image_shape), self.image_dtype)
        labels = np.empty(
            (len(ids), *slots, *self._labels.shape[1:]), self._labels.dtype
        )
        images[~ours], labels[~ours] = self._source.draw(ids[~ours], key, turns[~ours])
        if slots:
            images[ours] = self._images[canaries[ours], np.newaxis]
            labels[ours] = self._labels[canaries[ours], np.newaxis]
        else:
            images[ours] = self._images[canaries[ours]]
            labels[ours] = self._labels[canaries[ours]]
        return images, labels


def image_canaries(dataset: Dataset, count: int, random: np.random.Generator):
    """Returns test images with wrong labels, and equally many images of noise."""
    if count and dataset.task == MULTI_LABEL:
        raise DPMixError(
            "Image canaries have one wrong class, and these images have several "
            "labels. Set image_canaries=0: gradient canaries suit any labels."
        )
    mislabelled = (count + 1) // 2
    classes = len(dataset.class_names)
    if mislabelled > len(dataset.test):
        raise DPMixError(
            f"image_canaries must be at most {2 * len(dataset.test)}, twice the number "
            f"of test images; received: {count}."
        )
    chosen = random.choice(len(dataset.test), mislabelled, replace=False)
    images, labels = dataset.test.read(chosen)
    if not count:
        return images, labels
    wrong = (labels + random.integers(1, classes, mislabelled)) % classes
    noise = random.random((count - mislabelled, *dataset.image_shape))
    if images.dtype == np.uint8:
        noise = noise * 255
    return (
        np.concatenate([images, noise.astype(images.dtype)]),
        np.concatenate([wrong, random.integers(0, classes, len(noise))]),
    )


class CanaryStep(PrivateStep):
    """A PrivateStep that also trains on canaries and scores them by its own releases.

    Releases are scaled up: canaries make the batch larger, and dividing by its expected
    size would otherwise slow training down.

    Args:
      network: see PrivateStep, as for further keyword arguments.
      plan: for examples and canaries together.
      examples: number of private examples; the canaries' ids follow theirs.
      images: number of image canaries.
      gradients: number of gradient canaries, at most one per trainable weight.
      **settings: of PrivateStep.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        plan: PrivacyPlan,
        examples: int,
        images: int,
        gradients: int,
        **settings,
    ):
        super().__init__(network, plan=plan, **settings)
        weights = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
        if gradients > weights:
            raise DPMixError(
                f"gradient_canaries must be at most {weights}, the network's number of "
                f"trainable weights; received: {gradients}."
            )
        self._examples, self._images, self._weights = examples, images, weights
        places = np.random.default_rng(0).permutation(weights)[:gradients]
        self._places = tf.constant(places, tf.int32)
        self._included = tf.Variable(tf.zeros([images + gradients], tf.bool))
        self._scores = tf.Variable(tf.zeros([gradients]))
        self._without_canaries = None  # of the update being traced
        self._scale = plan.num_examples / examples

    @property
    def scores(self) -> np.ndarray:
        """Log-likelihood ratio that each gradient canary was in, float32 [n]."""
        return self._scores.numpy()

    def include(self, included: np.ndarray) -> None:
        """Sets which canaries are in: bool, image canaries first."""
        self._included.assign(included)

    def noisy_mean(self, batch: Batch) -> Release:
        """Makes the release and updates the gradient canaries' scores by it."""
        release = super().noisy_mean(batch)
        self._hear(release.gradients)
        scaled = [part * self._scale for part in release.gradients]
        return release._replace(gradients=scaled)

    def clipped_sum(self, images, labels, ids, update) -> ClippedSum:
        """Adds up the examples, and the canaries that their coins include."""
        canary = tf.cast(ids, tf.int32) - self._examples
        coins = tf.concat([[True], self._included], 0)
        included = tf.gather(coins, tf.maximum(canary + 1, 0))
        ordinary = (canary < self._images) & included
        batch = images, labels, ids
        kept = [tf.boolean_mask(part, ordinary) for part in batch]
        result = super().clipped_sum(kept[0], kept[1], kept[2], update)
        self._without_canaries = _flat(result.total)
        drawn = (canary >= self._images) & included
        ids = self._ids_of_records(*(tf.boolean_mask(part, drawn) for part in batch))
        first = self._examples + self._images
        places = tf.gather(self._places, tf.cast(ids, tf.int32) - first)
        canaries = self._sum_of_gradients(result.total, places)
        return result._replace(
            total=[
                part + self.plan.sensitivity * moved
                for part, moved in zip(result.total, canaries, strict=True)
            ]
        )

    def _ids_of_records(self, images, labels, ids):
        """The canary that each record is of, as the view maker forms records of them.

        Naive mixup's are of several examples, which the plan's sensitivity stands for.
        """
        if not isinstance(self.views, ViewMaker):
            return ids
        return self.records(images, labels, ids, tf.constant(0, tf.int64)).tensors[-1]

    def _sum_of_gradients(self, like, places):
        """Sums one record per place: ten clip norms at that weight, zero elsewhere."""
        chunk = max(1, min(64, _RECORDS_HELD // self._weights))
        sizes = [part.shape.num_elements() for part in like]

        def add_chunk(start, total):
            of_chunk = places[start : start + chunk]
            missing = chunk - tf.shape(of_chunk)[0]
            counted = tf.range(chunk) < chunk - missing
            records = tf.one_hot(
                tf.pad(of_chunk, [[0, missing]]),
                self._weights,
                on_value=_CANARY_LENGTH * self.plan.clip_norm,
            )
            parts = [
                tf.reshape(part, [chunk, *shaped.shape])
                for part, shaped in zip(
                    tf.split(tf.ensure_shape(records, [chunk, None]), sizes, 1),
                    like,
                    strict=True,
                )
            ]
            total, _ = self.mechanism.add(total, parts, counted)
            return start + chunk, total

        _, total = tf.while_loop(
            lambda start, _: start < tf.size(places),
            add_chunk,
            (tf.constant(0), self.mechanism.zero(like)),
            parallel_iterations=1,
        )
        return total

    def _hear(self, noisy):
        """Adds to each gradient canary's score what a noisy sum says about it.

        In units of how far one example may move the sum, the value at a canary's weight
        is N(0, sigma^2), or N(1, sigma^2) if the canary was drawn, which happens with
        probability q if it is in.
        """
        plan = self.plan
        seen = _flat(noisy) * plan.expected_batch_size - self._without_canaries
        seen = tf.gather(seen, self._places) / (plan.sensitivity * plan.clip_norm)
        drawn = (2.0 * seen - 1.0) / (2.0 * plan.noise_multiplier**2)
        q = plan.sampling_probability
        ratio = drawn + np.log(q)
        if q < 1:
            not_drawn = tf.fill(ratio.shape, tf.constant(np.log1p(-q), tf.float32))
            ratio = tf.reduce_logsumexp([ratio, not_drawn], axis=0)
        self._scores.assign_add(ratio)

    def start_again(self, seed: randomness.Seed) -> None:
        """Returns to the state before the first update, with another seed.

        Each run is audited on its own and none is released, so costs do not add up.
        """
        self.account._next.assign(0)
        self.view_stream.seed.assign(randomness.derive(seed, "views"))
        self.mechanism.reseed(seed)
        self._scores.assign(tf.zeros_like(self._scores))


def _flat(parts):
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
