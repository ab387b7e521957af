"""Reports on screen what a data set holds, before any privacy budget is spent.

These are facts about private images, without noise: they are shown on the screen and
never written to a file.
"""

import dataclasses
import os
import stat
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TextIO

import numpy as np

from dpmix_tf.data.poisson import refuse_several_labels
from dpmix_tf.data.registry import Dataset
from dpmix_tf.data.sources import ExampleSource, some_of
from dpmix_tf.errors import DPMixError

# How many training images have their values examined. Fewer for uint8, since decoding a
# photo may take a tenth of a second; floats are already in memory.
_READ, _READ_FLOATS = 100, 2_000
_BLOCK = 50
_LISTED = 20  # classes; with more, only the smallest and the largest are listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in a data set.

    Attributes:
      counts: part -> class -> how many images.
      sizes: stored (width, height), before any resizing -> how many training images.
      image_shape: (H, W, C) that they are read as.
      dtype: name of the images' dtype as they are read.
      looked_at: how many training images had their values examined.
      lowest: the lowest of those values.
      highest: the highest of those values.
      skipped: reason that files were skipped -> how many.
    """

    counts: Mapping[str, Mapping[str, int]]
    sizes: Counter[tuple[int, int]]
    image_shape: tuple[int, int, int]
    dtype: str
    looked_at: int
    lowest: float
    highest: float
    skipped: Mapping[str, int]

    def lines(self) -> list[str]:
        """Returns the findings as lines for the screen."""
        lines = ["Found (facts about private images: shown here, written to no file):"]
        for part, counts in self.counts.items():
            missing = [name for name, count in counts.items() if not count]
            lines.append(
                f"  {part}: {sum(counts.values()):,} images in {len(counts)} classes "
                f"({_by_class(counts)})"
                + (f"; none of {some_of(missing)}" if missing else "")
            )
        height, width, channels = self.image_shape
        (common, count), *others = self.sizes.most_common()
        text = f"  sizes: {_size(common)}"
        if others:
            smallest, *_, largest = sorted(
                self.sizes, key=lambda size: size[0] * size[1]
            )
            text += (
                f" in {count:,} of {self.sizes.total():,}, from {_size(smallest)} to "
                f"{_size(largest)}"
            )
        resized = "resized to" if {*self.sizes} != {(width, height)} else "read as"
        lines.append(f"{text}; {resized} {width}x{height}, {channels} channel(s)")
        text = f"  values: {self.dtype} from {self.lowest:g} to {self.highest:g}"
        if self.looked_at < self.sizes.total():
            text += f" in {self.looked_at:,} training images"
        if self.dtype != "uint8" and not 0 <= self.lowest <= self.highest <= 1:
            text += "; floats are used as they are, and [0, 1] is the usual range"
        lines.append(text)
        if self.skipped:
            skipped = [f"{count:,} {what}" for what, count in self.skipped.items()]
            lines.append(f"  skipped: {', '.join(skipped)}")
        return lines


def inspect(dataset: Dataset) -> Findings:
    """Examines a data set; refuses one that cannot be learned from.

    Raises:
      DPMixError: there are several labels per image, there is only one class, a class
        has no training images, all images have the same single value, or some values
        are not finite.
    """
    refuse_several_labels(dataset.train)
    names = dataset.class_names
    if len(names) < 2:
        raise DPMixError(
            f"There is one class only, {names[0]!r}: nothing to classify. For image "
            "folders, data.data_dir is the folder whose subfolders are the classes."
        )
    train = dataset.train.examine()
    counts = {"training": _counts(names, train.labels)}
    for part in ("validation", "test"):
        source = getattr(dataset, part)
        if source is not None:
            counts[part] = _counts(names, source.examine().labels)
    empty = [name for name, count in counts["training"].items() if not count]
    if empty:
        raise DPMixError(
            f"There are no training images of {some_of(empty)}, which cannot be "
            "learned without. Add images of each class, or leave these classes out."
        )
    looked_at, lowest, highest = _values(dataset.train)
    return Findings(
        counts=counts,
        sizes=Counter(map(tuple, train.sizes.tolist())),
        image_shape=dataset.image_shape,
        dtype=np.dtype(dataset.train.image_dtype).name,
        looked_at=looked_at,
        lowest=lowest,
        highest=highest,
        skipped=dataset.skipped,
    )


def show(dataset: Dataset, screen: TextIO | None = None) -> None:
    """Inspects a data set and prints the findings to stderr, unless it is a file.

    Raises:
      DPMixError: as for `inspect`.
    """
    screen = screen or sys.stderr
    lines = inspect(dataset).lines()
    if _is_file(screen):  # such as the log of an experiment's run
        lines = ["Findings about the private data are only shown on a screen."]
    print("\n".join(lines), file=screen, flush=True)


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # not a real file
        return False


def _counts(names: tuple[str, ...], labels: np.ndarray) -> dict[str, int]:
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise DPMixError(
            f"The data has {len(names)} classes and labels from {labels.min()} to "
            f"{labels.max()}. Expected labels in [0, {len(names)})."
        )
    counts = np.bincount(labels, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _values(source: ExampleSource) -> tuple[int, float, float]:
    """Reads evenly spread images; returns how many, and their extreme values."""
    most = _READ if source.image_dtype == np.uint8 else _READ_FLOATS
    chosen = np.unique(np.linspace(0, len(source) - 1, most).astype(np.int64))
    lows, highs = [], []
    for start in range(0, len(chosen), _BLOCK):
        images, _ = source.read(chosen[start : start + _BLOCK])
        lows.append(float(images.min()))
        highs.append(float(images.max()))
    # numpy's min and max, unlike Python's, are NaN if any value is.
    low, high = float(np.min(lows)), float(np.max(highs))
    if not np.isfinite([low, high]).all():
        raise DPMixError(
            "There are training images whose values are not finite (NaN or infinite): "
            "the whole budget would be spent on NaN. Repair or remove them."
        )
    if low == high:
        raise DPMixError(
            f"All values of {len(chosen)} training images are {low:g}: there is "
            "nothing to learn from. Were they read or scaled wrongly?"
        )
    return len(chosen), low, high


def _by_class(counts: Mapping[str, int]) -> str:
    if len(counts) <= _LISTED:
        return ", ".join(f"{name}: {count:,}" for name, count in counts.items())
    ranked = sorted(counts.items(), key=lambda item: item[1])
    few, many = (
        ", ".join(f"{name}: {count:,}" for name, count in some)
        for some in (ranked[:3], ranked[:-4:-1])
    )
    return f"fewest {few}; most {many}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
