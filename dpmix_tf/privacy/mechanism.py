"""The Gaussian mechanism: clip a record, sum records, add noise once, take the mean.

The query is TensorFlow Privacy's GaussianSumQuery, with two methods of ours. Its noise
comes from TensorFlow's stateful global generator, which cannot be repeated after a
crash and ignores any secret. And it takes one record at a time, in five passes over the
gradient; with a view or two an example, that is half of the update.
"""

import collections

import dp_accounting
import tensorflow as tf

from dpmix_tf.privacy import randomness
from dpmix_tf.privacy._tensorflow_privacy import GaussianSumQuery
from dpmix_tf.privacy.plan import PrivacyPlan

Record = list[tf.Tensor]

# A clipped record takes three roundings to float32, of 2^-24 each at most: the clip
# norm's, the scale's and each product's. This much shorter, it stays within the bound.
_MARGIN = 1 - 2.0**-22

# Below float32's normal numbers a rounding could double a scale.
_SMALLEST_NORMAL = 2.0**-126


class SeededGaussianSumQuery(GaussianSumQuery):
    """GaussianSumQuery whose noise is a function of (secret seed, update, variable)."""

    _GlobalState = collections.namedtuple(  # type: ignore[assignment]
        "_GlobalState", ["l2_norm_clip", "stddev", "update"]
    )

    def __init__(
        self,
        l2_norm_clip: float,
        stddev: float,
        seed: tf.Variable,
        gamma: float | None = None,
    ):
        super().__init__(l2_norm_clip, stddev)
        self._seed = seed
        self._gamma = gamma

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

    def accumulate_records(self, params, sample_state, records, counted, weights=None):
        """Clips several records and adds them: `accumulate_record` for each of them.

        One pass over the records measures them and one adds them up, scaled.

        Formal guarantee: no record is longer than the clip norm when it is added, with
        or without XLA, on any device and for any number of weights. Norms are summed in
        float64, where squares of float32 numbers are exact and sums are to a billionth,
        in whatever order a compiler takes them.

        Args:
          params: the clip norm, as `derive_sample_params` gives it.
          sample_state: the sum so far, one float32 tensor a variable.
          records: one float32 tensor [n,...] a variable.
          counted: bool [n], which records there are; the others are not added.
          weights: see `scales`.

        Returns:
          The new sum, and the records' norms before clipping, float32 [n]. Records
          whose norm is not finite are not added.
        """
        rows = [tf.reshape(part, [part.shape[0], -1]) for part in records]
        # l2_loss, row by row, is twice as fast as any reduction along an axis.
        squares = [
            [2.0 * tf.nn.l2_loss(tf.cast(one, tf.float64)) for one in tf.unstack(row)]
            for row in rows
        ]
        exact_norms = tf.sqrt(tf.reduce_sum(squares, axis=0))
        norms = tf.cast(exact_norms, tf.float32)
        added = tf.math.is_finite(norms) & counted
        scales = self.scales(params, exact_norms, counted, weights)
        # 0 * NaN is NaN: such rows must be emptied, which costs a pass; almost never.
        rows = tf.cond(
            tf.reduce_all(tf.math.is_finite(norms)),
            lambda: rows,
            lambda: [tf.where(added[:, tf.newaxis], row, 0.0) for row in rows],
        )
        sums = [
            tf.reshape(_scaled_sum(row, scales), total.shape)
            for row, total in zip(rows, sample_state, strict=True)
        ]
        return self.accumulate_preprocessed_record(sample_state, sums), norms

    def scales(self, params, norms, counted, weights=None):
        """Returns what records are multiplied by, so that none exceeds the clip norm.

        A record g becomes g * min(1, C / |g|); or, with gamma, C g / (|g| + gamma), the
        "automatic" clipping of Bu et al. 2022 (section 4).

        Args:
          params: the clip norm C, as `derive_sample_params` gives it.
          norms: float64 [n], no record's norm being larger than what is given here.
          counted: bool [n], which records there are.
          weights: float [n], what each record is multiplied by once it is clipped. A
            weight above 1 is taken as 1, and one that is no number as 0: no record is
            ever longer than without weights.

        Returns:
          float32 [n]; 0 for records that are not counted, or not finite.
        """
        most = _MARGIN * tf.cast(params, tf.float64)
        if self._gamma is None:
            scales = tf.minimum(most / norms, 1.0)
        else:
            scales = most / (norms + self._gamma)
        if weights is not None:
            weights = tf.cast(weights, tf.float64)
            scales *= tf.where(weights > 0, tf.minimum(weights, 1.0), 0.0)
        added = tf.math.is_finite(tf.cast(norms, tf.float32)) & counted
        return tf.where(
            added & (scales >= _SMALLEST_NORMAL), tf.cast(scales, tf.float32), 0.0
        )

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


def _scaled_sum(rows: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Sum over n of scales [n] times rows [n,p], each product in full float32.

    A matrix product takes one pass where multiplying and adding take three. But it may
    round its factors to ten bits (TensorFloat-32, the default on GPUs) or seven
    (bfloat16), and so lengthen a clipped record by some thousandths.
    """
    if in_full_float32():
        return tf.linalg.matvec(rows, scales, transpose_a=True)
    return tf.reduce_sum(rows * scales[:, tf.newaxis], axis=0)


def in_full_float32() -> bool:
    """Whether all devices are CPUs, and no rewriting of graphs to bfloat16 is on.

    On CPUs, TensorFlow calls oneDNN's sgemm, which oneDNN's own setting for lower
    precision (ONEDNN_DEFAULT_FPMATH_MODE) does not reach.
    """
    devices = tf.config.list_physical_devices()
    options = tf.config.optimizer.get_experimental_options()
    rewritten = any(on for name, on in options.items() if "mixed_precision" in name)
    return not rewritten and all(device.device_type == "CPU" for device in devices)


class GaussianMechanism:
    """Clips records, sums them and releases the noisy mean of one update.

    Formal guarantee: for a fixed update, `noisy_mean` of a sum of records that each
    went through `add` is the Gaussian mechanism with noise multiplier
    plan.noise_multiplier, under adding or removing one example, if that moves the sum
    by at most plan.sensitivity * plan.clip_norm: by the clip norm where each example is
    one record. The division by the expected batch size is post-processing.
    """

    def __init__(self, plan: PrivacyPlan, seed: int):
        """Keeps the plan's numbers and the noise stream of the run's secret seed."""
        self._stream = randomness.Stream(seed, "noise")
        self._query = SeededGaussianSumQuery(
            l2_norm_clip=plan.clip_norm,
            stddev=plan.noise_multiplier * plan.sensitivity * plan.clip_norm,
            seed=self._stream.seed,
            gamma=plan.gamma if plan.clipping == "automatic" else None,
        )
        self.clip_norm = self._query.derive_sample_params(
            self._query.initial_global_state()
        )
        self._expected_batch_size = float(plan.expected_batch_size)

    def reseed(self, seed: int) -> None:
        """Starts another run's noise."""
        self._stream.seed.assign(randomness.derive(seed, "noise"))

    def zero(self, template: Record) -> Record:
        """Returns the sum of no records: zeros shaped like `template`."""
        return list(self._query.initial_sample_state(template))

    def add(
        self,
        total: Record,
        records: Record,
        counted: tf.Tensor,
        weights: tf.Tensor | None = None,
    ) -> tuple[Record, tf.Tensor]:
        """Clips records and adds them to `total`.

        Each counts with its global L2 norm scaled down to clip_norm where it is longer,
        and not at all where its norm is not finite.

        Args:
          total: the sum so far, one float32 tensor a variable.
          records: n records side by side, one float32 tensor [n,...] a variable.
          counted: bool [n]; False where a place in a chunk is empty.
          weights: float [n] in [0, 1], what each clipped record is multiplied by.

        Returns:
          The new sum; the norms before clipping, float32 [n].
        """
        return self._query.accumulate_records(
            self.clip_norm, total, records, counted, weights
        )

    def scales(
        self, norms: tf.Tensor, counted: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns what each record is to be multiplied by before it is added.

        For sums whose records never exist one by one, see privacy.dense.

        Args:
          norms: float64 [n], upper bounds on the records' norms.
          counted: bool [n]; False where a place in a chunk is empty.
          weights: as of `add`.

        Returns:
          float32 [n]; times a record of at most such a norm, at most clip_norm.
        """
        return self._query.scales(self.clip_norm, norms, counted, weights)

    def noisy_mean(self, total: Record, update: tf.Tensor) -> Record:
        """Adds the noise of the `update`-th update once, divides by the expected size.

        The actual batch size never enters: it is private, and dividing by it would let
        one example's presence rescale everyone's gradient.
        """
        noised, _, _ = self._query.get_noised_result(
            total, self._query.global_state_at(update)
        )
        return [part / self._expected_batch_size for part in noised]
