"""Mixers: two views and lambda -> one view and the weight of the first label."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError


class Mixer(NamedTuple):
    """One way to combine two views into one.

    Attributes:
      draws: how many uniform numbers it uses per pair.
      blend: first and second, float [...,H,W,C]; lambda, float [...] in [0, 1]; draws,
        float [...,draws] in [0, 1) -> the blend, [...,H,W,C]; the weight of the first
        view's label, [...] (the second's is 1 minus it). Where pixels are pasted, label
        weights match the area actually pasted, not the lambda requested.
    """

    draws: int
    blend: Callable[..., tuple[tf.Tensor, tf.Tensor]]


def mixup(
    first: tf.Tensor, second: tf.Tensor, lam: tf.Tensor, draws: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends pixels: lam * first + (1 - lam) * second (Zhang et al. 2018)."""
    weight = tf.cast(lam, first.dtype)[..., tf.newaxis, tf.newaxis, tf.newaxis]
    return weight * first + (1 - weight) * second, lam


def cutmix(first, second, lam, draws):
    """Pastes a box of the second into the same place of the first (Yun et al. 2019).

    The box has (1 - lam) of the area, the image's proportions and its centre anywhere
    in the image; what extends beyond the border is cut off.
    """
    height, width = first.shape[-3:-1]
    part = tf.sqrt(1.0 - lam)
    inside = [
        _between(
            size,
            tf.floor(draws[..., axis] * size) - tf.floor(part * size / 2),
            tf.round(part * size),
        )
        for axis, size in enumerate((height, width))
    ]
    return _paste(first, second, inside[0][..., :, tf.newaxis] & _row(inside[1]))


def resizemix(first, second, lam, draws):
    """Pastes the whole second, shrunk, anywhere into the first (Qin et al. 2020).

    The shrunk image has (1 - lam) of the area.
    """
    height, width = first.shape[-3:-1]
    inside, scales = [], []
    for axis, size in enumerate((height, width)):
        extent = tf.round(tf.sqrt(1.0 - lam) * size)
        start = tf.floor(draws[..., axis] * (size - extent + 1.0))
        inside.append(_between(size, start, extent))
        scales.append(_resizing(size, start, extent))
    small = tf.einsum("...ih,...hwc,...jw->...ijc", scales[0], second, scales[1])
    return _paste(first, small, inside[0][..., :, tf.newaxis] & _row(inside[1]))


def fmix(first, second, lam, draws):
    """Keeps the first where a smooth random field is high (Harris et al. 2020).

    The field's amplitude falls with the third power of the frequency; the frequencies
    above the eighth, together a hundredth of it, are left out. The field is cut at a
    quantile, so that the first covers a fraction lam of the image, to within a pixel.
    """
    height, width = first.shape[-3:-1]
    rows, columns = (_waves(size) for size in (height, width))
    normal = tf.math.ndtri(draws + 2.0**-24)
    normal = tf.reshape(normal, [*_leading(draws), _WAVES, _WAVES])
    field = tf.einsum("hp,...pq,wq->...hw", rows, normal * _DECAY, columns)
    return _paste(first, second, ~_largest(field, lam))


def maskmix(first, second, lam, draws):
    """Keeps the first in random squares of a grid (MixPro, Zhao et al. 2023)."""
    height, width = first.shape[-3:-1]
    chosen = _largest(tf.reshape(draws, [*_leading(draws), _GRID, _GRID]), lam)
    rows, columns = (
        np.arange(size) * _GRID // size for size in (height, width)
    )  # which square each pixel belongs to
    mask = tf.gather(tf.gather(chosen, rows, axis=-2), columns, axis=-1)
    return _paste(first, second, ~mask)


_GRID = 4  # squares per side
_FREQUENCIES = 8
_WAVES = 2 * _FREQUENCIES + 1  # a constant, cosines and sines
_frequency = np.r_[0, np.repeat(np.arange(1, _FREQUENCIES + 1), 2)]
_distance = np.hypot(_frequency[:, np.newaxis], _frequency)
_DECAY = (np.maximum(_distance, 1.0) ** -3 * (_distance > 0)).astype(np.float32)

MIXERS = {
    "mixup": Mixer(0, mixup),
    "cutmix": Mixer(2, cutmix),
    "resizemix": Mixer(2, resizemix),
    "fmix": Mixer(_WAVES * _WAVES, fmix),
    "maskmix": Mixer(_GRID * _GRID, maskmix),
}


def parse_mixer(text: str) -> Mixer:
    """Returns the mixer that a text names.

    Args:
      text: a key of MIXERS; or several keys, each with the probability that a pair is
        given to it, such as "mixup:0.5,cutmix:0.5".

    Raises:
      DPMixError: a name is unknown, or the probabilities do not add up to 1.
    """
    names, _, numbers = zip(
        *(one.partition(":") for one in text.split(",")), strict=True
    )
    try:
        chances = [float(number or 1) for number in numbers]
    except ValueError:
        chances = [math.nan]
    fine = all(chance > 0 for chance in chances) and abs(sum(chances) - 1) < 1e-6
    if not fine or not set(names) <= MIXERS.keys() or len(set(names)) < len(names):
        raise DPMixError(
            f"mixer must be one of {', '.join(MIXERS)}, or several with probabilities "
            f"that add up to 1, such as mixup:0.5,cutmix:0.5; received: {text!r}."
        )
    if len(names) == 1:
        return MIXERS[names[0]]
    return _choice([MIXERS[name] for name in names], np.cumsum(chances)[:-1])


def _choice(mixers: list[Mixer], bounds: np.ndarray) -> Mixer:
    """Gives each pair to one of several mixers: computes all of them and keeps one."""

    def blend(first, second, lam, draws):
        which = tf.searchsorted(
            tf.cast(bounds, tf.float32), tf.reshape(draws[..., 0], [-1]), side="right"
        )
        which = tf.reshape(which, tf.shape(lam))
        parts = tf.split(draws[..., 1:], [mixer.draws for mixer in mixers], axis=-1)
        views, weight = mixers[0].blend(first, second, lam, parts[0])
        for index in range(1, len(mixers)):
            other, its_weight = mixers[index].blend(first, second, lam, parts[index])
            taken = which == index
            views = tf.where(
                taken[..., tf.newaxis, tf.newaxis, tf.newaxis], other, views
            )
            weight = tf.where(taken, its_weight, weight)
        return views, weight

    return Mixer(1 + sum(mixer.draws for mixer in mixers), blend)


def _paste(first, second, mask):
    """The second where the mask, bool [...,H,W], is set; the share of the first."""
    share = 1.0 - tf.reduce_mean(tf.cast(mask, tf.float32), axis=(-2, -1))
    return tf.where(mask[..., tf.newaxis], second, first), share


def _between(size: int, start, extent):
    """Which pixels of a side are in [start, start + extent): bool [...,size]."""
    pixels = tf.range(size, dtype=tf.float32)
    start, extent = start[..., tf.newaxis], extent[..., tf.newaxis]
    return (pixels >= start) & (pixels < start + extent)


def _row(mask):
    return mask[..., tf.newaxis, :]


def _resizing(size: int, start, extent):
    """Weights that shrink a side of `size` pixels to `extent` pixels from `start` on.

    Linear interpolation, widened by the shrinking factor: [...,size,size].
    """
    factor = size / tf.maximum(extent, 1.0)[..., tf.newaxis, tf.newaxis]
    pixels = tf.range(size, dtype=tf.float32)
    centres = (
        pixels[:, tf.newaxis] - start[..., tf.newaxis, tf.newaxis] + 0.5
    ) * factor
    weights = tf.maximum(1.0 - tf.abs(centres - (pixels + 0.5)) / factor, 0.0)
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, -1, keepdims=True))


def _waves(size: int) -> np.ndarray:
    """A constant, cosines and sines along a side: float32 [size,_WAVES]."""
    angles = (
        2 * np.pi * np.outer(np.arange(size) / size, np.arange(1, _FREQUENCIES + 1))
    )
    waves = np.stack([np.cos(angles), np.sin(angles)], -1).reshape(size, -1)
    return np.concatenate([np.ones([size, 1]), waves], 1).astype(np.float32)


def _largest(values, lam):
    """Marks the round(lam * H * W) largest values of each [...,H,W]."""
    leading, count = _leading(values, 2), values.shape[-2] * values.shape[-1]
    flat = tf.reshape(values, [*leading, count])
    rank = tf.argsort(tf.argsort(flat, direction="DESCENDING"))
    wanted = tf.cast(tf.round(lam * count), tf.int32)
    return tf.reshape(rank < wanted[..., tf.newaxis], tf.shape(values))


def _leading(values, last: int = 1) -> list:
    """The sizes of all axes but the last ones."""
    shape = tf.shape(values)
    return [shape[axis] for axis in range(values.shape.rank - last)]


# Candidates for each Gamma variate: at most one in twenty is rejected, so all eight are
# rejected about once in 4e10 draws; then the last one is used anyway.
_CANDIDATES = 8
# Uniform numbers that one draw of `beta` uses.
BETA_DRAWS = 2 * (2 * _CANDIDATES + 1)


def beta(draws: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draws lambda ~ Beta(alpha, alpha).

    A Beta variate is a ratio of Gamma variates, and Gamma(alpha) underflows to 0 for
    small alpha, which would give 0/0. Here the logarithms are compared instead:
    Gamma(alpha) has the distribution of Gamma(alpha + 1) * U**(1/alpha) (Devroye 1986,
    chapter IX.3), whose logarithm is finite, and lambda = sigmoid(log G1 - log G2).
    Gamma(alpha + 1) is drawn by rejection (Marsaglia and Tsang 2000) from a fixed
    number of candidates, for all examples at once: TensorFlow's own sampler takes one
    seed per call.

    Args:
      draws: uniform numbers in [0, 1), float32 [...,BETA_DRAWS].
      alpha: above 0.

    Returns:
      float32 [...] in [0, 1].
    """
    first, second = tf.split(draws, 2, axis=-1)
    return tf.sigmoid(_log_gamma(first, alpha) - _log_gamma(second, alpha))


def _log_gamma(draws: tf.Tensor, alpha: float) -> tf.Tensor:
    """Logarithms of Gamma(alpha) variates, [...], from uniform numbers."""
    proposal, decision, power = tf.split(draws, [_CANDIDATES, _CANDIDATES, 1], axis=-1)
    # The middle of the number's cell: never 0 or 1, where the quantile is infinite.
    normal = tf.math.ndtri(proposal + 2.0**-24)
    d = alpha + 1.0 - 1.0 / 3.0
    log_cube = 3.0 * tf.math.log(tf.maximum(1.0 + normal / (9.0 * d) ** 0.5, 1e-30))
    bound = 0.5 * tf.square(normal) + d * (1.0 - tf.exp(log_cube) + log_cube)
    accepted = tf.math.log1p(-decision) < bound
    # The first accepted candidate; the last one if there is none.
    last = tf.one_hot(_CANDIDATES - 1, _CANDIDATES, on_value=True, off_value=False)
    chosen = tf.argmax(tf.cast(accepted | last, tf.int32), axis=-1)
    log_above = tf.math.log(d) + tf.gather(
        log_cube, chosen, axis=-1, batch_dims=log_cube.shape.rank - 1
    )
    return log_above + tf.math.log1p(-power[..., 0]) / alpha
