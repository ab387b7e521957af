"""Mixup across private examples: a baseline that shows why DP-Mix does not do it."""

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
from dpmix_tf.views.base import Records
from dpmix_tf.views.maker import check_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaiveMixup:
    """Blends *different* private examples within microbatches (DP-Mix, section 3.1).

    Each example joins one of B / m microbatches, B being the expected batch size, by a
    draw of its own: whether it is there moves no other. Each microbatch becomes m
    views, blends of two of its members; their mean gradient is clipped once. One
    example more or less replaces its microbatch's gradient by another, each no longer
    than the clip norm: the sum moves by up to twice that, and noise is calibrated for
    it (PrivacyPlan.sensitivity). m times fewer gradients under twice the noise: it
    loses.

    The sum is divided by B all the same; for steps of the size that other view makers
    take, multiply the learning rate by m.

    Attributes:
      microbatch: m, 2 or more; a microbatch's true size varies around it.
      alpha: Beta parameter of lambda, above 0.
      augment: base augmentation of every partner.
      padding: of crops.
    """

    microbatch: int
    alpha: float = 0.2
    augment: str = "none"
    padding: int = 4

    kind: ClassVar[str] = "NaiveMixup"
    sensitivity: ClassVar[float] = 2.0  # clip norms
    shareable: ClassVar[bool] = False  # microbatches reach across replicas
    synthetic: ClassVar[int] = 0
    pool: ClassVar[None] = None
    views_per_example: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuses what cannot be mixed."""
        hold_plain_values(self)
        if self.microbatch < 2:
            raise DPMixError(
                "naive mixup blends different examples: microbatch must be 2 or more, "
                f"received: {self.microbatch}."
            )
        check_settings(self.alpha, self.augment)

    @property
    def views_per_record(self) -> int:
        """Views whose mean gradient is clipped as one: m."""
        return self.microbatch

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON-able values."""
        return dataclasses.asdict(self) | {"kind": self.kind}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NaiveMixup":
        """Makes what `to_dict` described."""
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
        """Says what is clipped as one, see views.base: here the microbatches."""
        count = max(1, round(expected_batch_size / self.microbatch))
        chances = randomness.uniform(randomness.fold_in_each(seed, ids), 1)[:, 0]
        assigned = tf.cast(chances * count, tf.int32)
        members = tf.argsort(assigned, stable=True)
        bounds = tf.searchsorted(tf.gather(assigned, members), tf.range(count + 1))
        # A last, empty row, which the views of empty microbatches are made of.
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
            # Labels of zeros, as of an empty microbatch, make no loss and no gradient.
            return views, weight * theirs[:, :, 0] + (1 - weight) * theirs[:, :, 1]

        return Records((tf.range(count),), make_views)
