"""PrivateStep: from a batch to the noisy mean of its clipped gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dpmix_tf.data import Batch
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import count_activations, dense_layers, split_frozen_front
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.account import Account
from dpmix_tf.privacy.clipping import (
    AddRecords,
    ClippedSum,
    add_vectorised,
    choose_chunk_size,
    clipped_gradient_sum,
    no_weights,
)
from dpmix_tf.privacy.dense import add_dense, choose_dense_chunk_size
from dpmix_tf.privacy.mechanism import GaussianMechanism, Record, in_full_float32
from dpmix_tf.tasks import SINGLE_LABEL
from dpmix_tf.training.losses import LOSSES, mean_weight
from dpmix_tf.views import Records, Views


class Release(NamedTuple):
    """What one update releases, and what it must not release.

    Attributes:
      update: int64 scalar, the number of the update, which has been charged.
      gradients: the noisy mean, one float32 tensor per trainable variable.
      clipped: what the noise was added to. Private.
      size: float32 scalar, examples in the batch. Private.
    """

    update: tf.Tensor
    gradients: Record
    clipped: ClippedSum
    size: tf.Tensor


class PrivateStep:
    """Makes views of a batch, clips each record's gradient, sums, charges, adds noise.

    It is a plain object, so that Keras does not track, save or restore any of it.

    Args:
      network: Keras model, float images [n,H,W,C] -> logits [n,classes].
      plan: the privacy budget.
      views: makes records, and views of each record.
      seed: secret; noise and views derive from it.
      account: where updates are charged.
      chunk_size: records vectorised together; by default chosen by the network's shape.
      task: one of tasks.TASKS.
      class_weights: one in [0, 1] per class, see DPMixModel.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        plan: PrivacyPlan,
        views: Views,
        seed: randomness.Seed,
        account: Account,
        chunk_size: int | None = None,
        task: str = SINGLE_LABEL,
        class_weights: Sequence[float] | None = None,
    ):
        self.task, self._loss = task, LOSSES[task]
        self._weights_of = no_weights
        if class_weights is not None:
            self._weights_of = functools.partial(mean_weight, tuple(class_weights))
        self.network, self.plan, self.views = network, plan, views
        self.account = account
        self.front, self.rest = split_frozen_front(network)
        dense = dense_layers(self.rest) if in_full_float32() else None
        self.add_records = self._choose_add_records(dense)
        # Public noise, as the trained part of the network takes it.
        noise = tf.random.stateless_uniform([2, *network.input_shape[1:]], seed=[0, 0])
        self._noise = noise if self.front is None else self.front(noise, training=False)
        self.seed = seed
        self.mechanism = GaussianMechanism(plan, seed)
        self.view_stream = randomness.Stream(seed, "views")
        self.chunk_size = self._checked(chunk_size, dense=dense is not None)
        self.jit_compile = False
        alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
        # Whether to abandon the current update; another thread may set it.
        self._abandoned = tf.Variable(False, trainable=False) if alone else None

    def noisy_mean(self, batch: Batch) -> Release:
        """Makes the release of one update; runs in a graph, on one or more replicas.

        The account's next update is charged once the clipped sum is known to be
        complete, and before any noise is drawn.

        Args:
          batch: drawn for that update. Each replica gets a part of it.
        """
        with tf.control_dependencies([batch.labels]):  # not before there is a batch
            update = self.account.check(batch.update)
        clipped = self.clipped_sum(batch.images, batch.labels, batch.ids, update)
        size = tf.cast(tf.shape(batch.images)[0], tf.float32)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            clipped, size = replica.all_reduce(
                tf.distribute.ReduceOp.SUM, (clipped, size)
            )
        with tf.control_dependencies(self._wholeness(clipped)):
            update = self.account.charge(update)
        with tf.control_dependencies([update]):
            # Equal on all replicas, noise included: it is added once in total.
            gradients = self.mechanism.noisy_mean(clipped.total, update)
        return Release(update, gradients, clipped, size)

    def clipped_sum(self, images, labels, ids, update) -> ClippedSum:
        """Adds up the clipped gradients of a batch. Private: the sum has no noise.

        Args:
          images: [n,H,W,C], uint8 or float; of people [n,slots,H,W,C].
          labels: integers [n], or one-hot or soft [n,classes], or several labels; of
            people [n,slots] or [n,slots,classes].
          ids: int64 [n], keys of the records' views.
          update: int64 scalar, the update whose views to make.
        """
        records = self.records(images, labels, ids, update)
        return clipped_gradient_sum(
            self.mechanism,
            [variable.value for variable in self.network.trainable_variables],
            records.tensors,
            self._with_front(records.make_views),
            self.add_records,
            chunk_size=self.chunk_size,
            jit_compile=self.jit_compile,
            abandoned=self._abandoned,
        )

    def records(self, images, labels, ids, update) -> Records:
        """Returns what is clipped as a unit; arguments as of `clipped_sum`."""
        if self.views.encoded:  # images and labels are known by the ids
            labels = tf.zeros([tf.shape(ids)[0], self.network.output_shape[-1]])
        else:
            axes = images.shape.rank - 3  # that count images
            shape = [*images.shape[:axes], *self.network.input_shape[1:]]
            images = tf.ensure_shape(images, shape)
            labels = self._soft(labels, axes)
        return self.views.records(
            images,
            labels,
            ids,
            seed=randomness.fold_in(self.view_stream.seed, update),
            expected_batch_size=self.plan.expected_batch_size,
        )

    def _with_front(self, make_views: Callable) -> Callable:
        """Wraps `make_views` to return what the trained part of the network takes."""
        if self.front is None or self.views.encoded:
            return make_views

        def make_features(*records):
            views, labels = make_views(*records)
            flat = tf.reshape(views, [-1, *views.shape[2:]])
            features = self.front(flat, training=False)
            return tf.reshape(features, [*views.shape[:2], *features.shape[1:]]), labels

        return make_features

    def _choose_add_records(self, dense: list[keras.layers.Layer] | None) -> AddRecords:
        """What clips and adds a chunk's records, of the kind that suits the network."""
        variables = self.network.trainable_variables
        if dense is not None:
            return add_dense(variables, dense, self._loss, self._weights_of)
        return add_vectorised(variables, self.mean_loss, self._weights_of)

    def mean_loss(self, features, labels):
        """One record's [K,...] and [K,classes] -> mean loss over its views."""
        logits = tf.cast(self.rest(features, training=True), tf.float32)
        return tf.reduce_mean(self._loss(logits, labels))

    def _soft(self, labels, axes):
        """Class numbers, or soft labels as they are, of images along some axes."""
        classes = int(self.network.output_shape[-1])
        if labels.shape.rank == axes:
            return tf.one_hot(labels, classes)
        shape = [*labels.shape[:axes], classes]
        return tf.cast(tf.ensure_shape(labels, shape), tf.float32)

    def is_finite(self) -> tf.Tensor:
        """Whether the network's weights, and its logits for public noise, are finite.

        Both are post-processing of what is released. The number of finite gradients, in
        contrast, would be private.

        Returns:
          bool scalar.
        """
        numbers = [variable.value for variable in self.network.trainable_variables]
        numbers.append(self.rest(self._noise, training=False))
        finite = [tf.reduce_all(tf.math.is_finite(each)) for each in numbers]
        return tf.reduce_all(finite)

    def abandon(self) -> None:
        """Makes the current update fail before it is charged; for another thread."""
        if self._abandoned is not None:
            self._abandoned.assign(True)

    def _wholeness(self, clipped: ClippedSum) -> list[tf.Operation]:
        """Checks to pass before the sum is used: it may lack a part of the batch."""
        if self._abandoned is None:
            return []
        with tf.control_dependencies([clipped.loss_sum]):
            whole = tf.debugging.Assert(
                ~self._abandoned,
                ["The update was abandoned; nothing of it is applied."],
            )
        return [whole] if whole is not None else []

    def _checked(self, chunk_size: int | None, *, dense: bool) -> int:
        """Returns and logs the requested chunk size, or one that suits the network."""
        if chunk_size is not None and chunk_size < 1:
            raise DPMixError(f"chunk_size must be 1 or more, received: {chunk_size}.")
        views = self.views.views_per_record
        activations = count_activations(self.rest)
        weights = sum(int(np.prod(v.shape)) for v in self.network.trainable_variables)
        if chunk_size is not None:
            why = "as requested"
        elif dense:
            inputs = [self.rest.input_shape[1:]]
            if not self.views.encoded:
                inputs.append(self.network.input_shape[1:])
            largest = max(int(np.prod(shape)) for shape in inputs)
            chunk_size = choose_dense_chunk_size(
                views, largest, activations, self.plan.expected_batch_size
            )
            why = f"K = {views}, a head of dense layers"
        else:
            chunk_size = choose_chunk_size(
                views_per_example=views,
                activations_per_view=activations,
                parameters=weights,
            )
            why = (
                f"K = {views}, {activations} activations per view, {weights} "
                "trainable weights"
            )
        logging.info("Chunks of %d example(s): %s.", chunk_size, why)
        return int(chunk_size)
