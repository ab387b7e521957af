"""ViewMaker: one private record -> K views of itself and of public images."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy import randomness
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.values import hold_plain_values
from dpmix_tf.views import mixers
from dpmix_tf.views.augment import augmentation
from dpmix_tf.views.base import Records, check_settings
from dpmix_tf.views.distinct import INDEX_DRAWS, distinct

# Uniform numbers a mixed view uses besides those of its mixer: two partners and lambda.
_PAIR_DRAWS = 2 + mixers.BETA_DRAWS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes K views of one example, or of one person's images (DP-Mix, section 3).

    A base view is an independent augmentation of the example, or of the person's images
    in turn, each with its own label. A synthetic view is an
    image of a public pool, drawn anew each time an example is used, augmented the same
    way, with its own label. A mixed view blends two different members of base +
    synthetic with lambda ~ Beta(alpha, alpha), and their labels likewise. No view of
    one example ever depends on another private example: this is what keeps the
    sensitivity at the clip norm.

    Use the presets `no_augmentation`, `self_aug`, `dp_mix_self` and `dp_mix_diff`.

    Attributes:
      base: K_BASE, augmented copies, 1 or more.
      mixed: K_SELF, blended views, 0 or more.
      synthetic: K_DIFF, images from the pool, 0 or more.
      alpha: Beta parameter, above 0.
      mixer: how two views become one: "mixup", "cutmix", "resizemix", "fmix",
        "maskmix", or a random choice, "mixup:0.5,cutmix:0.5"; see views.mixers.
      augment: name of the base augmentation, see views.augment.AUGMENTATIONS.
      padding: pixels by which crops may move; 4 is published for 32x32 images.
      pool: SyntheticPool with the images' size and classes; needed if synthetic > 0.
        Its images are uint8 and become floats in [0, 1], as the private ones must.
      only_mixed: use only the mixed views in the loss (as in the paper's figure).
      labels_only: blend labels but take the first partner's pixels (as the released
        script does).
      same_class: draw synthetic images of the (first) image's own class only.
      visits: R, 1 or more: an example has R fixed sets of K views, and each update uses
        one of them, chosen at random. By default its views are new at every update. A
        frozen encoder's features of them (they are drawn by the example's number) can
        be made once, see EncodedViews.
      seed: of fixed views; public, 0 or more.
    """

    base: int = 1
    mixed: int = 0
    synthetic: int = 0
    alpha: float = 0.2
    mixer: str = "mixup"
    augment: str = "none"
    padding: int = 4
    pool: SyntheticPool | None = None
    only_mixed: bool = False
    labels_only: bool = False
    same_class: bool = False
    visits: int | None = None
    seed: int = 0

    kind: ClassVar[str] = "ViewMaker"
    sensitivity: ClassVar[float] = 1.0  # clip norms
    shareable: ClassVar[bool] = True
    encoded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses invalid counts and names."""
        hold_plain_values(self)
        for name in ("mixed", "synthetic", "padding", "seed"):
            if getattr(self, name) < 0:
                raise DPMixError(
                    f"{name} must be 0 or more, received: {getattr(self, name)}."
                )
        if self.base < 1:
            raise DPMixError(f"base must be 1 or more, received: {self.base}.")
        if self.mixed and self._partners < 2:
            raise DPMixError(
                f"mixed={self.mixed} views need two different views to blend; received "
                f"base={self.base}, synthetic={self.synthetic}. Raise base or set "
                "mixed=0."
            )
        if self.only_mixed and not self.mixed:
            raise DPMixError("only_mixed leaves no views where mixed=0. Raise mixed.")
        if self.visits is not None and self.visits < 1:
            raise DPMixError(
                f"visits must be 1 or more, or None, received: {self.visits}."
            )
        mixers.parse_mixer(self.mixer)
        check_settings(self.alpha, self.augment)
        if self.synthetic:
            self._check_pool()

    def _check_pool(self) -> None:
        if self.pool is None:
            raise DPMixError(
                f"synthetic={self.synthetic} views need a pool of public images. Make "
                "one with bin/generate_pool.py and give pool=SyntheticPool.load(...)."
            )
        counts = np.bincount(self.pool.labels, minlength=len(self.pool.class_names))
        fewest = int(counts.min()) if self.same_class else len(self.pool)
        if fewest < self.synthetic:
            where = (
                f"the class {self.pool.class_names[int(counts.argmin())]!r}"
                if self.same_class
                else "the pool"
            )
            raise DPMixError(
                f"synthetic={self.synthetic} different images are drawn for each "
                f"example, and {where} holds {fewest}. Generate more."
            )

    def to_dict(self) -> dict[str, Any]:
        """The attributes as JSON-able values; for a pool, its folder and digest.

        Raises:
          DPMixError: the pool is not on disk.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["kind"] = self.kind
        if self.pool is None:
            return values
        if self.pool.folder is None:
            raise DPMixError(
                "The pool of synthetic images was made in memory, and a saved model "
                "names the folder of its pool. Load it with SyntheticPool.load, or "
                "save model.network alone."
            )
        return values | {
            "pool": {
                "folder": self.pool.folder,
                "digest": self.pool.digest,
                "class_names": list(self.pool.class_names),
            }
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ViewMaker":
        """Makes the maker that `to_dict` described.

        Raises:
          DPMixError: the pool is missing or has changed.
        """
        if values["pool"] is None:
            return cls(**values)
        described = values["pool"]
        pool = SyntheticPool.load(
            described["folder"], class_names=described["class_names"]
        )
        if pool.digest != described["digest"]:
            raise DPMixError(
                f"The pool {described['folder']} has changed since the model was "
                "saved. Put the old one back."
            )
        return cls(**{**values, "pool": pool})

    @property
    def _partners(self) -> int:
        """Number of views that mixed ones are blended from."""
        return self.base + self.synthetic

    @property
    def views_per_example(self) -> int:
        """K."""
        return self.count(self.base, self.mixed, self.synthetic, self.only_mixed)

    @staticmethod
    def count(base: int, mixed: int, synthetic: int, only_mixed: bool) -> int:
        """Returns K of a maker with these attributes."""
        return mixed if only_mixed else base + synthetic + mixed

    views_per_record = views_per_example  # all of an example's are clipped as a unit

    def records(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        ids: tf.Tensor,
        *,
        seed: tf.Tensor,
        expected_batch_size: float,
    ) -> Records:
        """Returns what is clipped as a unit, see views.base: here each example."""
        del expected_batch_size

        def make_views(images, labels, ids):
            if self.visits is not None:
                seeds = self.fixed_seeds(ids, self.choose_visits(seed, ids))
                return self.several(images, labels, seeds)
            return self.several(images, labels, randomness.fold_in_each(seed, ids))

        return Records((images, labels, ids), make_views)

    def choose_visits(self, seed: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        """Chooses one of each example's `visits` sets of views, all equally likely.

        From the update's secret seed, int64 [2], and the examples' ids, int64 [n];
        int32 [n] in [0, visits).
        """
        if self.visits == 1:  # drawing would take longer than the rest of an update
            return tf.zeros_like(ids, tf.int32)
        draws = randomness.uniform(randomness.fold_in_each(seed, ids), 1)[:, 0]
        return tf.cast(draws * tf.cast(self.visits, tf.float32), tf.int32)

    def fixed_seeds(self, ids: tf.Tensor, visits: tf.Tensor) -> tf.Tensor:
        """The seeds, int64 [n,2], of fixed views: of (self.seed, example, visit)."""
        fixed = tf.constant(randomness.derive(self.seed, "fixed views"))
        return randomness.fold_in_pairs(fixed, ids, visits)

    def several(
        self, images: tf.Tensor, labels: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes the views of several examples at once.

        The views of an example depend only on its image, its label, its seed and the
        pool, whatever the other examples are.

        Args:
          images: [n,H,W,C]; of people [n,slots,H,W,C]; static shape, uint8 in [0, 255]
            or float of any range.
          labels: float [n,classes], one-hot or soft; of people [n,slots,classes].
          seeds: int64 [n,2], the seed of each example at this update.

        Returns:
          views, float32 [n,K,H,W,C], in the order base, synthetic, mixed; in [0, 1] for
          uint8 images and in the image's own range otherwise; labels, float32
          [n,K,classes].
        """
        *_, height, width, channels = images.shape
        draws = self._draws(seeds, (height, width, channels))
        images, labels = self._originals(as_float(images), tf.cast(labels, tf.float32))
        if self.synthetic:
            drawn, drawn_labels = self._draw_synthetic(labels[:, 0], draws.synthetic)
            images = tf.concat([images, drawn], 1)
            labels = tf.concat([labels, drawn_labels], 1)
        shape = images.shape
        augment = augmentation(self.augment, tuple(shape[2:]), self.padding)
        images = augment(
            tf.reshape(images, [-1, *shape[2:]]),
            tf.reshape(draws.augment, [shape[0] * shape[1], augment.draws]),
        )
        images = tf.reshape(images, shape)
        if not self.mixed:
            return images, labels
        first, second, lam = self._pairs(draws.pairs)
        # batch_dims keeps both partners among the example's own views.
        mixed, weight = mixers.parse_mixer(self.mixer).blend(
            tf.gather(images, first, axis=1, batch_dims=1),
            tf.gather(images, second, axis=1, batch_dims=1),
            lam,
            draws.pairs[..., _PAIR_DRAWS:],
        )
        if self.labels_only:
            mixed = tf.gather(images, first, axis=1, batch_dims=1)
        weight = weight[..., tf.newaxis]
        mixed_labels = weight * tf.gather(labels, first, axis=1, batch_dims=1) + (
            1 - weight
        ) * tf.gather(labels, second, axis=1, batch_dims=1)
        if self.only_mixed:
            return mixed, mixed_labels
        return tf.concat([images, mixed], 1), tf.concat([labels, mixed_labels], 1)

    def _originals(self, images, labels) -> tuple[tf.Tensor, tf.Tensor]:
        """The images, in turn, of the base views: [n,base,H,W,C], [n,base,classes]."""
        if images.shape.rank == 4:
            images, labels = images[:, tf.newaxis], labels[:, tf.newaxis]
        turn = tf.range(self.base) % tf.shape(images)[1]
        return tf.gather(images, turn, axis=1), tf.gather(labels, turn, axis=1)

    def one_example(
        self, image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes the views of one example: `several` without the first axis."""
        views, labels = self.several(
            *(tf.convert_to_tensor(part)[tf.newaxis] for part in (image, label, seed))
        )
        return views[0], labels[0]

    def pairs(
        self, seed: tf.Tensor, image_shape: tuple[int, int, int]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns which views each mixed view of one example blends.

        Args:
          seed: int64 [2], the example's seed.
          image_shape: (H, W, C).

        Returns:
          first and second, int32 [mixed], uniform over ordered pairs of different
          members of base + synthetic; lambda, float32 [mixed].
        """
        seeds = tf.convert_to_tensor(seed)[tf.newaxis]
        first, second, lam = self._pairs(self._draws(seeds, image_shape).pairs)
        return first[0], second[0], lam[0]

    def _draws(self, seeds: tf.Tensor, image_shape: tuple[int, int, int]) -> "_Numbers":
        """Returns all random numbers of the examples' views: one draw per example."""
        augment = augmentation(self.augment, image_shape, self.padding).draws
        pair = _PAIR_DRAWS + mixers.parse_mixer(self.mixer).draws
        widths = [
            self._partners * augment,
            self.mixed * pair,
            self.synthetic * INDEX_DRAWS,
        ]
        augment_draws, pairs, synthetic = tf.split(
            randomness.uniform(seeds, sum(widths)), widths, axis=1
        )
        return _Numbers(
            augment=augment_draws,
            pairs=tf.reshape(pairs, [-1, self.mixed, pair]),
            synthetic=tf.reshape(synthetic, [-1, self.synthetic, INDEX_DRAWS]),
        )

    def _pairs(self, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        first = tf.cast(draws[..., 0] * self._partners, tf.int32)
        # A non-zero step around the circle of partners never lands on `first`.
        step = 1 + tf.cast(draws[..., 1] * (self._partners - 1), tf.int32)
        lam = mixers.beta(draws[..., 2:_PAIR_DRAWS], self.alpha)
        return first, (first + step) % self._partners, lam

    def _draw_synthetic(
        self, labels: tf.Tensor, draws: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws distinct pool images for each example, with their one-hot labels."""
        assert self.pool is not None
        pool_labels = tf.constant(self.pool.labels)
        start, size = tf.constant([[0]]), tf.constant([[len(self.pool)]])
        if self.same_class:  # the pool is ordered by class
            own = tf.argmax(labels, axis=-1, output_type=tf.int32)
            start = tf.searchsorted(pool_labels, own)[:, tf.newaxis]
            size = tf.searchsorted(pool_labels, own, "right")[:, tf.newaxis] - start
        indices = start + distinct(size, draws)
        images = as_float(self.pool.gather(indices))
        return images, tf.one_hot(tf.gather(pool_labels, indices), labels.shape[1])

    def __call__(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        seed: int | tf.Tensor | None = None,
        ids: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes the views of several examples for inspection; training uses `records`.

        Args:
          images: [n,H,W,C], or of people [n,slots,H,W,C]; uint8 or float.
          labels: [n,classes], or of people [n,slots,classes]; one-hot or soft.
          seed: int, or int64 [2], or None for a fresh one.
          ids: int64 [n], which key the examples' draws; by default their positions.

        Returns:
          views, float32 [n,K,H,W,C]; labels, float32 [n,K,classes].
        """
        images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels)
        if (
            images.shape.rank not in (4, 5)
            or labels.shape.rank != images.shape.rank - 2
        ):
            raise DPMixError(
                "views need images [n,H,W,C] and one-hot labels [n,classes], or a "
                "person's [n,slots,H,W,C] and [n,slots,classes]; received shapes "
                f"{tuple(images.shape)} and {tuple(labels.shape)}."
            )
        if seed is None:
            seed = tf.random.uniform([2], tf.int64.min, tf.int64.max, tf.int64)
        elif isinstance(seed, int):
            seed = randomness.derive(seed, "views")
        seed = tf.convert_to_tensor(seed, tf.int64)
        if ids is None:
            ids = tf.range(tf.shape(images)[0])
        seeds = randomness.fold_in_each(seed, tf.cast(ids, tf.int64))
        return self.several(images, labels, seeds)


class _Numbers(NamedTuple):
    """Uniform numbers for the views of n examples.

    Attributes:
      augment: float32 [n,partners * the augmentation's draws].
      pairs: float32 [n,mixed,_PAIR_DRAWS + the mixer's draws].
      synthetic: float32 [n,synthetic,INDEX_DRAWS].
    """

    augment: tf.Tensor
    pairs: tf.Tensor
    synthetic: tf.Tensor
