"""What the peers' processes have in common: the work, and how they are asked for it.

A worker answers one line of JSON for each line it reads: a step's name with the seconds
that it took, or "norms" with what its clipped sum measures.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 1e-6
GROUPS, EPSILON = 16, 1e-3  # of the group normalisation


class Work(NamedTuple):
    """One batch and one network, the same for everyone.

    Attributes:
      views: float32 [examples,K,32,32,3] in [0, 1].
      labels: float32 [examples,K,10], one-hot.
      convolutions: kernels [h,w,in,out], in the order in which they are made.
      scales: of the group normalisations, in that order; so `offsets`.
      kernel: float32 [features,10], the logits'.
      bias: float32 [10].
    """

    views: np.ndarray
    labels: np.ndarray
    convolutions: list[np.ndarray]
    scales: list[np.ndarray]
    offsets: list[np.ndarray]
    kernel: np.ndarray
    bias: np.ndarray


_LISTS = ("convolutions", "scales", "offsets")


def save(path: str, work: Work) -> None:
    """Writes the work where workers find it."""
    arrays = {}
    for name, value in work._asdict().items():
        if name in _LISTS:
            arrays |= {f"{name}/{i:03}": part for i, part in enumerate(value)}
        else:
            arrays[name] = value
    np.savez(path, **arrays)


def load(path: str) -> Work:
    """Reads the work."""
    arrays = np.load(path)
    lists = {
        name: [arrays[key] for key in sorted(arrays) if key.startswith(name + "/")]
        for name in _LISTS
    }
    rest = {name: arrays[name] for name in Work._fields if name not in _LISTS}
    return Work(**lists, **rest)


def set_weights(network: Any, work: Work) -> None:
    """Gives a Keras network (2 or 3) the work's weights."""
    made = sorted(network.layers, key=number)
    convolutions = [layer for layer in made if "Conv2D" in type(layer).__name__]
    normalisations = [layer for layer in made if "GroupNorm" in type(layer).__name__]
    (logits,) = (layer for layer in made if type(layer).__name__ == "Dense")
    for layer, kernel in zip(convolutions, work.convolutions, strict=True):
        layer.set_weights([kernel])
    for layer, scale, offset in zip(
        normalisations, work.scales, work.offsets, strict=True
    ):
        layer.set_weights([scale, offset])
    logits.set_weights([work.kernel, work.bias])


def number(layer: Any) -> int:
    """Keras numbers layers of a class in the order in which they are made."""
    end = layer.name.rsplit("_", 1)[-1]
    return int(end) if end.isdigit() else 0


def norms(parts: Sequence[Any]) -> dict[str, float]:
    """L2 norms of a clipped sum: of all, and of tensors with as many axes."""
    arrays = [np.asarray(part, np.float64) for part in parts]
    squares = {"all": sum(float((array**2).sum()) for array in arrays)}
    for axes in (1, 2, 4):
        of_these = [array for array in arrays if array.ndim == axes]
        squares[f"{axes} axes"] = sum(float((array**2).sum()) for array in of_these)
    return {name: square**0.5 for name, square in squares.items()}


def serve(
    about: str, steps: dict[str, Callable[[], Any]], clipped_sums: dict[str, Callable]
) -> None:
    """Answers until there is nothing more to read.

    Args:
      about: name and version of what runs here.
      steps: "plain" and at least one private step, each of which waits for its end.
      clipped_sums: private step -> what it adds noise to, a list of arrays.
    """
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print
        print(json.dumps({"about": about, "steps": list(steps)}), file=answer)
        answer.flush()
        for line in sys.stdin:
            name = line.strip()
            if name == "norms":
                result = {name: norms(sum_()) for name, sum_ in clipped_sums.items()}
            else:
                started = time.perf_counter()
                steps[name]()
                result = time.perf_counter() - started
            print(json.dumps(result), file=answer)
            answer.flush()
