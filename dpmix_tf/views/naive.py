"""Mixup across private examples: a baseline that shows why DP-Mix avoids it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy import randomness
from dpmix_tf.values import hold_plain_values
from dpmix_tf.views import mixers
from dpmix_tf.views.augment import augmentation
from dpmix_tf.views.base import Records, check_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaiveMixup:
    """Blends *different* private examples within microbatches (DP-Mix, section 3.1).

    Each example joins one of B / m microbatches, where B is the expected batch size, by
    its own random draw, so its presence moves no other example. Each microbatch becomes
    m views, blends of two of its members; their mean gradient is clipped once. Adding
    or removing one example replaces its microbatch's gradient by another, each no
    longer than the clip norm: the sum moves by up to twice that norm, and the noise is
    calibrated for it (PrivacyPlan.sensitivity). With m times fewer gradients under
    twice the noise, it is a deliberately weak baseline.

    The sum is nevertheless divided by B; for steps as large as those of other view
    makers, multiply the learning rate by m.

    Attributes:
      microbatch: m, 2 or more; the actual size of a microbatch varies around it.
      alpha: Beta parameter of lambda, above 0.
      augment: base augmentation of every partner.
      padding: padding of crops, in pixels.
    """

    microbatch: int
    alpha: float = 0.2
    augment: str = "none"
    padding: int = 4

    kind: ClassVar[str] = "NaiveMixup"
    sensitivity: ClassVar[float] = 2.0  # clip norms
    shareable: ClassVar[bool] = False  # microbatches reach across replicas
    encoded: ClassVar[bool] = False
    synthetic: ClassVar[int] = 0
    pool: ClassVar[None] = None
    views_per_example: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuses invalid settings."""
        hold_plain_values(self)
        if self.microbatch < 2:
            raise DPMixError(
                "naive mixup blends different examples: microbatch must be 2 or more, "
                f"received: {self.microbatch}."
            )
        check_settings(self.alpha, self.augment)

    @property
    def views_per_record(self) -> int:
        """Number of views whose mean gradient is clipped as a unit: m."""
        return self.microbatch

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON-able values."""
        return dataclasses.asdict(self) | {"kind": self.kind}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NaiveMixup":
        """Makes the maker that `to_dict` described."""
        return cls(**values)

    def records(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        ids: tf.Tensor,
        *,
        seed: tf.Tensor,
        expected_batch_size: float,
    ) -> Records:
        """Returns what is clipped as a unit, see views.base: here the microbatches."""
        count = max(1, round(expected_batch_size / self.microbatch))
        chances = randomness.uniform(randomness.fold_in_each(seed, ids), 1)[:, 0]
        assigned = tf.cast(chances * count, tf.int32)
        members = tf.argsort(assigned, stable=True)
        bounds = tf.searchsorted(tf.gather(assigned, members), tf.range(count + 1))
        # A last row of zeros, from which the views of empty microbatches are made.
        members = tf.concat([members, [tf.shape(members)[0]]], 0)
        images = tf.pad(images, [[0, 1], [0, 0], [0, 0], [0, 0]])
        labels = tf.pad(labels, [[0, 1], [0, 0]])
        augment = augmentation(self.augment, tuple(images.shape[1:]), self.padding)
        seed = randomness.fold_in(seed, -1)  # ids are not negative

        def make_views(numbers):
            start = tf.gather(bounds, numbers)[:, tf.newaxis]
            size = tf.gather(bounds, numbers + 1)[:, tf.newaxis] - start
            widths = [2, mixers.BETA_DRAWS, 2 * augment.draws]
            draws = randomness.uniform(
                randomness.fold_in_each(seed, tf.cast(numbers, tf.int64)),
                self.microbatch * sum(widths),
            )
            draws = tf.reshape(draws, [-1, self.microbatch, sum(widths)])
            which, beta, moves = tf.split(draws, widths, axis=-1)
            many = tf.cast(size, tf.float32)
            first = tf.cast(which[..., 0] * many, tf.int32)
            step = 1 + tf.cast(which[..., 1] * tf.maximum(many - 1, 0.0), tf.int32)
            second = tf.math.floormod(first + step, tf.maximum(size, 1))
            empty = tf.shape(members)[0] - 1
            pairs = tf.where(size[..., tf.newaxis] > 0, start[..., tf.newaxis]
                             + tf.stack([first, second], -1), empty)  # fmt: skip
            rows = tf.gather(members, pairs)  # [chunk,m,2]
            partners = as_float(tf.gather(images, rows))
            partners = tf.reshape(
                augment(
                    tf.reshape(partners, [-1, *images.shape[1:]]),
                    tf.reshape(moves, [-1, augment.draws]),
                ),
                [-1, self.microbatch, 2, *images.shape[1:]],
            )
            lam = mixers.beta(beta, self.alpha)
            views, weight = mixers.mixup(partners[:, :, 0], partners[:, :, 1], lam)
            theirs, weight = tf.gather(labels, rows), weight[..., tf.newaxis]
            # Labels of zeros, as for an empty microbatch, give no loss and no gradient.
            return views, weight * theirs[:, :, 0] + (1 - weight) * theirs[:, :, 1]

        return Records((tf.range(count),), make_views)
