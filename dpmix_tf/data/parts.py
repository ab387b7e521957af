"""Cuts of a source into parts, which depend on names: what is added moves no others."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from dpmix_tf.data.sources import ExampleSource
from dpmix_tf.errors import DPMixError


def cut(
    source: ExampleSource, fraction: float, part: str
) -> tuple[ExampleSource, ExampleSource | None]:
    """Splits off a fixed choice of a source's examples, for a part of the data.

    Where the examples have names, each joins the part by its own name; where they come
    from people, each person joins it with all of his or her examples.

    Args:
      source: the examples.
      fraction: expected fraction of the examples, or of the people, to split off.
      part: name of the part; the choices for different parts are independent.

    Returns:
      The others; the part, or None if examples without names are too few for one.

    Raises:
      DPMixError: by their names all examples, or none, would be in the part.
    """
    names, rows, what = _units(source)
    if names is not None:
        chosen = _places(names, part) < fraction
        if chosen.all() or not chosen.any():
            raise DPMixError(
                f"{int(chosen.sum())} of {len(names)} {what} fall into the {part} "
                f"part: each is assigned to it with probability {fraction:.0%}, by its "
                "name. Add images, or sort them into train/, test/ and val/ (in a "
                "table, by a column of these words); data.validation_fraction=0 keeps "
                "no validation part."
            )
        chosen = chosen[rows]
        return source.subset(np.where(~chosen)[0]), source.subset(np.where(chosen)[0])
    # NumPy guarantees RandomState's streams never change, unlike Generator's.
    order = np.random.RandomState(0).permutation(len(source))
    size = round(fraction * len(source))
    if not size:
        return source, None
    return source.subset(np.sort(order[size:])), source.subset(np.sort(order[:size]))


def keep(
    source: ExampleSource, count: int | None
) -> tuple[ExampleSource, ExampleSource | None]:
    """A fixed choice of `count` of a source's examples, and the others.

    Where the examples come from people, `count` people with all of their examples.

    Args:
      source: the examples.
      count: how many; None for all.

    Raises:
      DPMixError: `count` is out of range.
    """
    names, rows, what = _units(source)
    most = len(source) if names is None else len(names)
    if count is None:
        return source, None
    if not 1 <= count <= most:
        raise DPMixError(
            f"data.train_examples must be from 1 to {most}, the number of {what}; "
            f"received: {count}."
        )
    if names is None:
        return cut(source, 1 - count / most, "")
    chosen = np.argsort(_places(names, "kept"), kind="stable")[:count]
    kept = np.isin(rows, chosen)
    first, others = source.subset(np.where(kept)[0]), np.where(~kept)[0]
    return first, source.subset(others) if len(others) else None


def _units(source: ExampleSource) -> tuple[Sequence[str] | None, np.ndarray, str]:
    """What must not be cut: names, the index of each example's name, what they are."""
    if source.people is not None:
        people, rows = np.unique(source.people, return_inverse=True)
        return people.tolist(), rows, "people"
    return source.names(), np.arange(len(source)), "images"


def _places(names: Sequence[str], part: str) -> np.ndarray:
    """A number in [0, 1) per name, uniform, and independent for different parts."""
    digests = [
        hashlib.sha256(part.encode() + b"\0" + os.fsencode(name)).digest()
        for name in names
    ]
    return np.array([int.from_bytes(each[:8], "big") for each in digests]) / 2.0**64
