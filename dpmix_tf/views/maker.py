"""ViewMaker: one private example -> K views, of itself and of public images."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.views import mixers
from dpmix_tf.views.augment import AUGMENTATIONS, Augmentation

# Streams of one example's seed.
_AUGMENT, _FIRST, _OFFSET, _LAMBDA, _SYNTHETIC = range(5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes K views of one example (DP-Mix, section 3).

    A base view is an independent augmentation of the example. A synthetic view is an
    image of a public pool, drawn anew for every example and visit, augmented the same
    way, with its own label. A mixed view blends two different members of base +
    synthetic with lambda ~ Beta(alpha, alpha), and their labels alike. No view of one
    example ever depends on another private example: this is what keeps the sensitivity
    at the clip norm.

    Use the presets `no_augmentation`, `self_aug`, `dp_mix_self` and `dp_mix_diff`.

    Attributes:
      base: K_BASE, augmented copies, 1 or more.
      mixed: K_SELF, blended views, 0 or more.
      synthetic: K_DIFF, images from the pool, 0 or more.
      alpha: Beta parameter, above 0.
      augment: name of the base augmentation, see views.augment.AUGMENTATIONS.
      padding: pixels by which crops may move; 4 is published for 32x32 images.
      pool: SyntheticPool of the images' size and classes; needed where synthetic > 0.
        Its images are uint8 and become floats in [0, 1], as the private ones must.
      only_mixed: let only the mixed views into the loss (the paper's figure).
      labels_only: blend labels but take the first partner's pixels (what the released
        script does).
      same_class: draw synthetic images of the example's own class only.
    """

    base: int = 1
    mixed: int = 0
    synthetic: int = 0
    alpha: float = 0.2
    augment: str = "none"
    padding: int = 4
    pool: SyntheticPool | None = None
    only_mixed: bool = False
    labels_only: bool = False
    same_class: bool = False

    def __post_init__(self) -> None:
        """Refuses counts and names that make no views."""
        for name in ("mixed", "synthetic", "padding"):
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
        if not self.alpha > 0:
            raise DPMixError(f"alpha must be above 0, received: {self.alpha}.")
        if self.augment not in AUGMENTATIONS:
            raise DPMixError(
                f"augment must be one of {', '.join(AUGMENTATIONS)}; received: "
                f"{self.augment!r}."
            )
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

    @property
    def _partners(self) -> int:
        """Views that mixed ones are blended from."""
        return self.base + self.synthetic

    @property
    def views_per_example(self) -> int:
        """K."""
        return self.mixed if self.only_mixed else self._partners + self.mixed

    def one_example(
        self, image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes the views of one example.

        Args:
          image: [H,W,C], static shape; uint8 in [0, 255] or float of any range.
          label: float [classes], one-hot or soft.
          seed: int64 [2], this example's at this update.

        Returns:
          views, float32 [K,H,W,C], base, synthetic, mixed, in [0, 1] for uint8 images
          and in the image's own range otherwise; labels, float32 [K,classes].
        """
        shape = tuple(image.shape)
        label = tf.cast(label, tf.float32)
        images = tf.repeat(as_float(image)[tf.newaxis], self.base, axis=0)
        labels = tf.repeat(label[tf.newaxis], self.base, axis=0)
        if self.synthetic:
            drawn, drawn_labels = self._draw_synthetic(label, seed)
            images = tf.concat([images, drawn], 0)
            labels = tf.concat([labels, drawn_labels], 0)
        augment = _augmentation(self.augment, shape, self.padding)
        images = augment(images, randomness.fold_in(seed, _AUGMENT))
        if not self.mixed:
            return images, labels
        first, second, lam = self.pairs(seed)
        mixed, weight = mixers.mixup(
            tf.gather(images, first), tf.gather(images, second), lam
        )
        if self.labels_only:
            mixed = tf.gather(images, first)
        weight = weight[:, tf.newaxis]
        mixed_labels = weight * tf.gather(labels, first) + (1 - weight) * tf.gather(
            labels, second
        )
        if self.only_mixed:
            return mixed, mixed_labels
        return tf.concat([images, mixed], 0), tf.concat([labels, mixed_labels], 0)

    def _draw_synthetic(
        self, label: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Different images of the pool and their one-hot labels."""
        assert self.pool is not None
        pool_labels = tf.constant(self.pool.labels)
        start, size = tf.constant(0), tf.constant(len(self.pool))
        if self.same_class:  # the pool is ordered by class
            own = tf.argmax(label, output_type=tf.int32)
            start = tf.searchsorted(pool_labels, own[tf.newaxis])[0]
            size = tf.searchsorted(pool_labels, own[tf.newaxis], "right")[0] - start
        indices = start + distinct(
            self.synthetic, size, randomness.fold_in(seed, _SYNTHETIC)
        )
        images = as_float(self.pool.gather(indices))
        return images, tf.one_hot(tf.gather(pool_labels, indices), label.shape[0])

    def pairs(self, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws what each mixed view blends.

        Args:
          seed: int64 [2], the example's.

        Returns:
          first and second, int32 [mixed], uniform over ordered pairs of different
          members of base + synthetic; lambda, float32 [mixed].
        """
        first = tf.random.stateless_uniform(
            [self.mixed], randomness.fold_in(seed, _FIRST), 0, self._partners, tf.int32
        )
        # A non-zero step around the pool never meets `first` again.
        step = tf.random.stateless_uniform(
            [self.mixed], randomness.fold_in(seed, _OFFSET), 1, self._partners, tf.int32
        )
        lam = mixers.beta(self.mixed, self.alpha, randomness.fold_in(seed, _LAMBDA))
        return first, (first + step) % self._partners, lam

    def __call__(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        seed: int | tf.Tensor | None = None,
        ids: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes the views of several examples, for looking at; training streams them.

        Args:
          images: [n,H,W,C], uint8 or float.
          labels: [n,classes], one-hot or soft.
          seed: int, or int64 [2], or None for a fresh one.
          ids: int64 [n], what each example's draws are keyed by; default its position.

        Returns:
          views, float32 [n,K,H,W,C]; labels, float32 [n,K,classes].
        """
        images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels)
        if images.shape.rank != 4 or labels.shape.rank != 2:
            raise DPMixError(
                "views need images [n,H,W,C] and one-hot labels [n,classes], received "
                f"shapes {tuple(images.shape)} and {tuple(labels.shape)}."
            )
        if seed is None:
            seed = tf.random.uniform([2], tf.int64.min, tf.int64.max, tf.int64)
        elif isinstance(seed, int):
            seed = randomness.derive(seed, "views")
        seed = tf.convert_to_tensor(seed, tf.int64)
        if ids is None:
            ids = tf.range(tf.shape(images)[0])
        classes = labels.shape[1]
        return tf.map_fn(
            lambda row: self.one_example(
                row[0], row[1], randomness.fold_in(seed, row[2])
            ),
            (images, labels, tf.cast(ids, tf.int64)),
            fn_output_signature=(
                tf.TensorSpec([self.views_per_example, *images.shape[1:]], tf.float32),
                tf.TensorSpec([self.views_per_example, classes], tf.float32),
            ),
        )


def no_augmentation() -> ViewMaker:
    """One view, the example itself: plain DP-SGD."""
    return ViewMaker()


def self_aug(
    *, base: int = 16, augment: str = "crop_flip", padding: int = 4
) -> ViewMaker:
    """Augmentation multiplicity (De et al. 2022): `base` augmented copies."""
    return ViewMaker(base=base, augment=augment, padding=padding)


def dp_mix_self(
    *,
    base: int = 16,
    mixed: int = 18,
    alpha: float = 0.2,
    augment: str = "crop_flip",
    padding: int = 4,
) -> ViewMaker:
    """DP-Mix_Self (Bao et al. 2023): augmented copies, and blends of them."""
    return ViewMaker(
        base=base, mixed=mixed, alpha=alpha, augment=augment, padding=padding
    )


def dp_mix_diff(
    *,
    pool: SyntheticPool,
    base: int = 16,
    mixed: int = 18,
    synthetic: int = 2,
    alpha: float = 0.2,
    augment: str = "crop_flip",
    padding: int = 4,
) -> ViewMaker:
    """DP-Mix_Diff (Bao et al. 2023): the pool's images join the blends."""
    return ViewMaker(
        base=base,
        mixed=mixed,
        synthetic=synthetic,
        alpha=alpha,
        augment=augment,
        padding=padding,
        pool=pool,
    )


def distinct(count: int, size: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws `count` different numbers below `size`; every set is equally likely.

    Floyd's algorithm (Bentley and Floyd 1987): count draws, whatever the size.

    Args:
      count: a Python int, at most `size`.
      size: int32 scalar.
      seed: int64 [2].

    Returns:
      int32 [count].
    """
    chosen: list[tf.Tensor] = []
    for position in range(count):
        last = size - count + position
        drawn = tf.random.stateless_uniform(
            [], randomness.fold_in(seed, position), 0, last + 1, tf.int32
        )
        taken = tf.reduce_any([drawn == other for other in chosen] or [False])
        chosen.append(tf.where(taken, last, drawn))
    return tf.stack(chosen)


def as_float(images: tf.Tensor) -> tf.Tensor:
    """uint8 images in [0, 255] -> float32 in [0, 1]; float images stay as they are."""
    images = tf.convert_to_tensor(images)
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / 255.0
    return tf.cast(images, tf.float32)


@functools.lru_cache(maxsize=64)
def _augmentation(
    name: str, image_shape: tuple[int, int, int], padding: int
) -> Augmentation:
    return Augmentation(name, image_shape, padding)
