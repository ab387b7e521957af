"""The Gaussian mechanism: clip a record, sum records, add noise once, take the mean.

Clip and sum are TensorFlow Privacy's GaussianSumQuery. Its noise comes from
TensorFlow's stateful global generator, which cannot be repeated after a crash and
ignores any secret; only that one method is replaced.
"""

import collections

import dp_accounting
import tensorflow as tf

from dpmix_tf.privacy import randomness
from dpmix_tf.privacy._tensorflow_privacy import GaussianSumQuery
from dpmix_tf.privacy.plan import PrivacyPlan

Record = list[tf.Tensor]


class SeededGaussianSumQuery(GaussianSumQuery):
    """GaussianSumQuery whose noise is a function of (secret seed, update, variable)."""

    _GlobalState = collections.namedtuple(  # type: ignore[assignment]
        "_GlobalState", ["l2_norm_clip", "stddev", "update"]
    )

    def __init__(self, l2_norm_clip: float, stddev: float, seed: tf.Variable):
        super().__init__(l2_norm_clip, stddev)
        self._seed = seed

    def make_global_state(self, l2_norm_clip, stddev, update=0):
        """Adds the update's number to what TensorFlow Privacy keeps."""
        return self._GlobalState(
            tf.cast(l2_norm_clip, tf.float32),
            tf.cast(stddev, tf.float32),
            tf.cast(update, tf.int64),
        )

    def global_state_at(self, update):
        """Returns the state with which the `update`-th update (from 0) is noised."""
        return self.make_global_state(self._l2_norm_clip, self._stddev, update)

    def get_noised_result(self, sample_state, global_state):
        """Adds independent noise to every element of every tensor of the sum."""
        update_seed = randomness.fold_in(self._seed, global_state.update)
        noised = [
            total
            + global_state.stddev
            * tf.random.stateless_normal(
                tf.shape(total),
                seed=randomness.fold_in(update_seed, index),
                dtype=total.dtype,
                alg="philox",
            )
            for index, total in enumerate(tf.nest.flatten(sample_state))
        ]
        event = dp_accounting.GaussianDpEvent(
            global_state.stddev / global_state.l2_norm_clip
        )
        next_state = global_state._replace(update=global_state.update + 1)
        return tf.nest.pack_sequence_as(sample_state, noised), next_state, event


class GaussianMechanism:
    """Clips records, sums them and releases the noisy mean of one update.

    Formal guarantee: for a fixed update, `noisy_mean` of a sum of records that each
    went through `clip` is the Gaussian mechanism with L2 sensitivity plan.clip_norm and
    noise multiplier plan.noise_multiplier, under adding or removing one record; the
    division by the expected batch size is post-processing.
    """

    def __init__(self, plan: PrivacyPlan, seed: int):
        """Keeps the plan's numbers and the noise stream of the run's secret seed."""
        self._stream = randomness.Stream(seed, "noise")
        self._query = SeededGaussianSumQuery(
            l2_norm_clip=plan.clip_norm,
            stddev=plan.noise_multiplier * plan.clip_norm,
            seed=self._stream.seed,
        )
        self.clip_norm = self._query.derive_sample_params(
            self._query.initial_global_state()
        )
        self._expected_batch_size = float(plan.expected_batch_size)

    def zero(self, template: Record) -> Record:
        """Returns the sum of no records: zeros shaped like `template`."""
        return list(self._query.initial_sample_state(template))

    def clip(self, record: Record) -> tuple[Record, tf.Tensor]:
        """Scales `record` down to the clip norm where it is longer.

        Args:
          record: float tensors, one a variable.

        Returns:
          The record with global L2 norm at most clip_norm, zeros where the norm is not
          finite; and the norm before clipping, float32 scalar.
        """
        clipped, norm = self._query.preprocess_record_impl(self.clip_norm, record)
        finite = tf.math.is_finite(norm)
        return [tf.where(finite, part, tf.zeros_like(part)) for part in clipped], norm

    def add(self, total: Record, clipped: Record) -> Record:
        """Returns total + clipped."""
        return self._query.accumulate_preprocessed_record(total, clipped)

    def noisy_mean(self, total: Record, update: tf.Tensor) -> Record:
        """Adds the noise of the `update`-th update once, divides by the expected size.

        The actual batch size never enters: it is private, and dividing by it would let
        one example's presence rescale everyone's gradient.
        """
        noised, _, _ = self._query.get_noised_result(
            total, self._query.global_state_at(update)
        )
        return [part / self._expected_batch_size for part in noised]
