"""ViewMaker: one private example -> K views, all from itself."""

import dataclasses
import functools

import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.views import mixers
from dpmix_tf.views.augment import AUGMENTATIONS, Augmentation

# Streams of one example's seed.
_AUGMENT, _FIRST, _OFFSET, _LAMBDA = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes K = base + mixed views of one example (DP-Mix, section 3).

    A base view is an independent augmentation of the example. A mixed view blends two
    different base views with lambda ~ Beta(alpha, alpha). No view of one example ever
    depends on another example: this is what keeps the sensitivity at the clip norm.

    Use the presets `no_augmentation`, `self_aug` and `dp_mix_self`.

    Attributes:
      base: K_BASE, augmented copies, 1 or more.
      mixed: K_SELF, blended views, 0 or more; needs base >= 2.
      alpha: Beta parameter, above 0.
      augment: name of the base augmentation, see views.augment.AUGMENTATIONS.
      padding: pixels by which crops may move; 4 is published for 32x32 images.
    """

    base: int = 1
    mixed: int = 0
    alpha: float = 0.2
    augment: str = "none"
    padding: int = 4

    def __post_init__(self) -> None:
        """Refuses counts and names that make no views."""
        if self.base < 1:
            raise DPMixError(f"base must be 1 or more, received: {self.base}.")
        if self.mixed < 0:
            raise DPMixError(f"mixed must be 0 or more, received: {self.mixed}.")
        if self.mixed and self.base < 2:
            raise DPMixError(
                f"mixed={self.mixed} views need two different base views to blend; "
                f"received base={self.base}. Raise base or set mixed=0."
            )
        if self.padding < 0:
            raise DPMixError(f"padding must be 0 or more, received: {self.padding}.")
        if not self.alpha > 0:
            raise DPMixError(f"alpha must be above 0, received: {self.alpha}.")
        if self.augment not in AUGMENTATIONS:
            raise DPMixError(
                f"augment must be one of {', '.join(AUGMENTATIONS)}; received: "
                f"{self.augment!r}."
            )

    @property
    def views_per_example(self) -> int:
        """K."""
        return self.base + self.mixed

    def one_example(
        self, image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes the views of one example.

        Args:
          image: [H,W,C], static shape; uint8 in [0, 255] or float of any range.
          label: float [classes], one-hot or soft.
          seed: int64 [2], this example's at this update.

        Returns:
          views, float32 [K,H,W,C], base then mixed, in [0, 1] for uint8 images and in
          the image's own range otherwise; labels, float32 [K,classes].
        """
        base = tf.repeat(as_float(image)[tf.newaxis], self.base, axis=0)
        augment = _augmentation(self.augment, tuple(image.shape), self.padding)
        base = augment(base, randomness.fold_in(seed, _AUGMENT))
        labels = tf.repeat(tf.cast(label, tf.float32)[tf.newaxis], self.base, axis=0)
        if not self.mixed:
            return base, labels
        first, second, lam = self.pairs(seed)
        mixed, weight = mixers.mixup(
            tf.gather(base, first), tf.gather(base, second), lam
        )
        weight = weight[:, tf.newaxis]
        mixed_labels = weight * tf.gather(labels, first) + (1 - weight) * tf.gather(
            labels, second
        )
        return tf.concat([base, mixed], 0), tf.concat([labels, mixed_labels], 0)

    def pairs(self, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws what each mixed view blends.

        Args:
          seed: int64 [2], the example's.

        Returns:
          first and second, int32 [mixed], uniform over ordered pairs of different pool
          members; lambda, float32 [mixed].
        """
        pool = self.base
        first = tf.random.stateless_uniform(
            [self.mixed], randomness.fold_in(seed, _FIRST), 0, pool, tf.int32
        )
        # A non-zero step around the pool never meets `first` again.
        step = tf.random.stateless_uniform(
            [self.mixed], randomness.fold_in(seed, _OFFSET), 1, pool, tf.int32
        )
        lam = mixers.beta(self.mixed, self.alpha, randomness.fold_in(seed, _LAMBDA))
        return first, (first + step) % pool, lam

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
