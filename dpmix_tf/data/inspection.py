"""What a data set holds, said on the screen before any privacy budget is spent.

These are facts of private images, without noise: they go to the screen and into no
file.
"""

import dataclasses
import os
import stat
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TextIO

import numpy as np

from dpmix_tf.data.registry import Dataset
from dpmix_tf.data.sources import ExampleSource, some_of
from dpmix_tf.errors import DPMixError

# Training images whose values are looked at: of uint8 fewer, since a photo may take a
# tenth of a second; floats lie in memory.
_READ, _READ_FLOATS = 100, 2_000
_BLOCK = 50
_LISTED = 20  # classes; of more, the smallest and the largest are named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in a data set.

    Attributes:
      counts: part -> class -> how many images.
      sizes: (width, height) as kept, before any resizing -> how many training images.
      image_shape: (H, W, C) that they are read as.
      dtype: of the images as they are read.
      looked_at: how many training images' values were looked at.
      lowest: of their values.
      highest: of their values.
      skipped: why files were passed over -> how many.
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
        """The findings for the screen, one line each."""
        lines = ["Found (facts of private images: shown here, kept in no file):"]
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
            text += "; floats are used as they are, and [0, 1] is what is usual"
        lines.append(text)
        if self.skipped:
            skipped = [f"{count:,} {what}" for what, count in self.skipped.items()]
            lines.append(f"  skipped: {', '.join(skipped)}")
        return lines


def inspect(dataset: Dataset) -> Findings:
    """Looks at a data set; refuses what cannot be learned from.

    Raises:
      DPMixError: one class only, a class without training images, or images that all
        have one value, or values that are not finite.
    """
    names = dataset.class_names
    if len(names) < 2:
        raise DPMixError(
            f"There is one class only, {names[0]!r}: nothing to tell apart. For image "
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
            f"There are no training images of {some_of(empty)}: this cannot be "
            "learned. Bring more images of each, or leave these classes out."
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
    """Inspects a data set and prints what was found to stderr, unless that is a file.

    Raises:
      DPMixError: see inspect.
    """
    screen = screen or sys.stderr
    lines = inspect(dataset).lines()
    if _is_file(screen):  # such as the log of an experiment's run
        lines = ["What was found in the private data is only shown on a screen."]
    print("\n".join(lines), file=screen, flush=True)


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # it only looks like a stream
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
    """How many images were looked at, evenly spread; their lowest and highest value."""
    most = _READ if source.image_dtype == np.uint8 else _READ_FLOATS
    chosen = np.unique(np.linspace(0, len(source) - 1, most).astype(np.int64))
    lows, highs = [], []
    for start in range(0, len(chosen), _BLOCK):
        images, _ = source.read(chosen[start : start + _BLOCK])
        lows.append(float(images.min()))
        highs.append(float(images.max()))
    # Of numpy, whose least and greatest of several are NaN if one is.
    low, high = float(np.min(lows)), float(np.max(highs))
    if not np.isfinite([low, high]).all():
        raise DPMixError(
            "There are training images whose values are not finite (NaN or infinite): "
            "all of the budget would be spent on NaN. Mend or remove them."
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
