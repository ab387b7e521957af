"""Draws one example's views, like the paper's method figure."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpmix_tf import plotting
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy import randomness
from dpmix_tf.views.base import Views
from dpmix_tf.views.maker import ViewMaker

_COLUMNS = 9


def draw_views(
    make_views: Views,
    image: np.ndarray,
    label: np.ndarray | int,
    class_names: Sequence[str],
    *,
    seed: int,
    path: str | Path,
) -> None:
    """Draws the example and its base, synthetic and mixed views, with their labels.

    Args:
      make_views: makes the views.
      image: [H,W,C], uint8 or float; of a person [slots,H,W,C].
      label: index into class_names, of a person [slots]; or several labels, float
        [classes] or [slots,classes].
      class_names: one name per class.
      seed: the seed of the views.
      path: PNG file to write.

    Raises:
      DPMixError: views of several examples blended: naive mixup.
    """
    if not isinstance(make_views, ViewMaker):
        raise DPMixError("Naive mixup has no views of one example to be drawn.")
    pyplot = plotting.pyplot()
    key = randomness.derive(seed, "views")
    one_hot = _soft(label, len(class_names))
    everything = dataclasses.replace(make_views, only_mixed=False)
    views, labels = everything.one_example(image, one_hot, key)
    base, partners = make_views.base, make_views.base + make_views.synthetic
    numbered = [f"{i}: {_label(labels[i], class_names)}" for i in range(partners)]
    groups = [
        _originals(image, one_hot, class_names),
        (f"{base} base views ({make_views.augment})", views[:base], numbered[:base]),
    ]
    if make_views.synthetic:
        title = f"{make_views.synthetic} synthetic views, from the public pool"
        groups.append((title, views[base:partners], numbered[base:]))
    if make_views.mixed:
        height, width, channels = image.shape[-3:]
        first, second, lam = make_views.pairs(key, (height, width, channels))
        captions = [
            f"{weight:.2f} of view {u}\n+ {1 - weight:.2f} of view {v}\n"
            + _label(soft, class_names)
            for u, v, weight, soft in zip(
                first, second, lam, labels[partners:], strict=True
            )
        ]
        how = f"{make_views.mixer}, alpha = {make_views.alpha:g}"
        title = f"{make_views.mixed} mixed views ({how})"
        groups.append((title, views[partners:], captions))
    heights = [math.ceil(len(images) / _COLUMNS) for _, images, _ in groups]
    figure = pyplot.figure(
        figsize=(1.35 * _COLUMNS, 1.75 * sum(heights) + 0.45 * len(groups)),
        layout="constrained",
    )
    parts = figure.subfigures(len(groups), 1, height_ratios=[h + 0.3 for h in heights])
    for part, rows, (title, images, captions) in zip(
        np.atleast_1d(parts), heights, groups, strict=True
    ):
        part.suptitle(title, x=0.01, ha="left", fontsize=11)
        axes = part.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, pixels, caption in zip(axes, images, captions, strict=False):
            pixels = np.clip(np.asarray(pixels), 0, 1)
            axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(caption, y=-0.07, va="top", fontsize=7)
    write_atomic(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    pyplot.close(figure)


def _soft(label, classes: int) -> np.ndarray:
    """Labels as the view maker takes them; what is not known is drawn as absent."""
    if np.asarray(label).dtype.kind == "f":  # several labels
        return np.nan_to_num(np.asarray(label, np.float32))
    return np.eye(classes, dtype=np.float32)[label]


def _originals(image, one_hot, class_names: Sequence[str]):
    """The example, or a person's images, with a title and labels."""
    title = "the example" if image.ndim == 3 else "the person's images"
    images = np.reshape(as_float(image), [-1, *image.shape[-3:]])
    labels = np.reshape(one_hot, [-1, len(class_names)])
    return title, images, [_label(each, class_names) for each in labels]


def _label(label, class_names: Sequence[str]) -> str:
    """A soft label in words: "3", or "0.71 cat, 0.29 dog"."""
    weights = np.asarray(label)
    shown = [index for index in np.argsort(-weights) if weights[index] > 0.005]
    if len(shown) == 1:
        return class_names[shown[0]]
    return ", ".join(f"{weights[index]:.2f} {class_names[index]}" for index in shown)
