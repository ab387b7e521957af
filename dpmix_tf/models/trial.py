"""Tries a network on public noise before it is trained on anything private."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.forward import operations, watched

# In float32, the softmax of logits that are a hundred apart is exactly 0 and 1: at such
# a loss on noise, gradients no longer tell how far off an output is.
_LARGEST_LOSS = 100.0
# Input images span a range of 1. Of their eight bits, a range of 0.02 leaves the
# weights five grey levels; dividing by 255 a second time leaves 0.004.
_LEAST_CONTRAST = 0.02


def public_images(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Makes two batches of two images of noise, float32 [2,H,W,C] in [0, 1].

    The first image is dark except for a corner, and the same in both batches. The
    second is light except for that corner, and the second batch holds its negative.
    """
    noise = np.random.RandomState(0).uniform(size=(2, *shape))
    corner = np.zeros(shape)
    corner[: (shape[0] + 1) // 2, : (shape[1] + 1) // 2] = 1
    pair = (noise + np.stack([corner, 1 - corner])) / 2
    other = np.stack([pair[0], 1 - pair[1]])
    return pair.astype(np.float32), other.astype(np.float32)


def check_logits(
    network: keras.Model,
    forward: Callable[[Any], Any],
    features: tuple[Any, Any],
) -> None:
    """Checks a network's outputs, with its own weights and with perturbed ones.

    Args:
      network: images -> logits; its trainable weights are perturbed, then restored.
      forward: features -> logits, as in training.
      features: the features of both batches of `public_images`.

    Raises:
      DPMixError: the outputs are not finite, have too large a loss to train, are the
        same for every image, are probabilities, or change with another image of the
        batch.
    """

    def logits(batch):
        return np.asarray(forward(batch), np.float32)

    name = repr(network.name)
    start = logits(features[0])
    if not np.all(np.isfinite(start)):
        raise DPMixError(
            f"The logits of {name} for images of noise in [0, 1] are not finite"
            f"{_first_not_finite(network)}. Nothing could be learned from them: fix "
            "that layer, or its initial weights."
        )
    # The mean cross-entropy over all labels.
    top = start.max(axis=1, keepdims=True)
    entropy = top[:, 0] + np.log(np.exp(start - top).sum(axis=1)) - start.mean(axis=1)
    if entropy.mean() > _LARGEST_LOSS:
        raise DPMixError(
            f"The mean cross-entropy of {name} on images of noise in [0, 1] with "
            f"random labels is {entropy.mean():.3g}; a network that knows nothing has "
            f"log(classes) = {np.log(start.shape[1]):.3g}. Scale down its last layer's "
            "initial weights, or what multiplies the images."
        )
    # A head that starts at zero would hide what precedes it, and only squashed outputs
    # stay small whatever the weights are.
    small, changed = _moved(network, logits, features, (0.1, 0.01, 0.0), seed=1)
    large = [
        *_moved(network, logits, features[:1], (10.0, 1.0, 0.1), seed=2),
        *_moved(network, logits, features[:1], (10.0, 1.0, 0.1), seed=3),
    ]
    if not np.allclose(small[0], changed[0], rtol=1e-4, atol=1e-5):
        raise DPMixError(
            f"The output of {name} for one image changes with another image "
            "of the batch: some layer mixes examples. Remove it; normalise each "
            "example on its own, for instance with keras.layers.GroupNormalization."
        )
    _check_not_squashed(name, np.concatenate([small, changed, *large]))
    if all(np.allclose(first, second, rtol=1e-6) for first, second in (small, *large)):
        raise DPMixError(
            f"{name} emits the same logits for different images, whatever its weights: "
            "some layer discards the image. Check each layer's output in turn."
        )


def _check_not_squashed(name: str, outputs: np.ndarray) -> None:
    instead = (
        "The loss is computed from logits: remove the activation at the end "
        "(activation=None in the last Dense)."
    )
    outputs = outputs[np.isfinite(outputs).all(axis=1)]
    if not outputs.any():
        return
    # bfloat16 has about three digits.
    if np.all(outputs > -1e-2) and np.allclose(outputs.sum(axis=1), 1, atol=2e-2):
        raise DPMixError(
            f"The outputs of {name} are probabilities that sum to 1, as from softmax. "
            + instead
        )
    if np.all(np.abs(outputs) <= 1.01):
        raise DPMixError(
            f"The outputs of {name} stay between {outputs.min():.0f} and "
            f"{outputs.max():.0f} whatever its weights, as from sigmoid or tanh. "
            + instead
        )


def _moved(network, logits, features, scales, *, seed) -> list[np.ndarray]:
    """Logits of each batch with perturbed weights, at the first finite scale."""
    outputs: list[np.ndarray] = []
    for scale in scales:
        with _perturbed(network.trainable_variables, scale, seed):
            outputs = [logits(batch) for batch in features]
        if all(np.isfinite(output).all() for output in outputs):
            break
    return outputs


@contextlib.contextmanager
def _perturbed(variables: list[Any], scale: float, seed: int) -> Iterator[None]:
    """Adds normal noise to variables, and restores their values."""
    noise = scale * _unit_noise()
    starts = np.random.RandomState(seed).randint(len(noise), size=len(variables))
    before = [np.asarray(variable) for variable in variables]
    try:
        for variable, value, start in zip(variables, before, starts, strict=True):
            # In large variables the noise repeats; its period is not any layer's size.
            own = np.resize(noise[start : start + value.size], value.shape)
            variable.assign(value + own)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


@functools.cache
def _unit_noise() -> np.ndarray:
    return np.random.RandomState(0).normal(size=199_999).astype(np.float32)


class _Seen(BaseException):
    """Ends a run early; not an Exception, so that Keras does not rewrite it."""


def _run(network: keras.Model, around: Callable[..., Any]) -> None:
    """Runs the first batch layer by layer, until `around` has seen enough."""
    images, _ = public_images(network.input_shape[1:])
    leaves = [
        operation
        for operation in operations(network)
        if not isinstance(operation, keras.Sequential)
        and not hasattr(operation, "_nodes_by_depth")
    ]
    with watched(leaves, around), contextlib.suppress(_Seen):
        network(images, training=False)


def _first_not_finite(network: keras.Model) -> str:
    """Names the first layer whose output is not finite, for a message; "" if none."""
    found = []

    def around(operation, call, *arguments, **settings):
        outputs = call(*arguments, **settings)
        if not all(np.isfinite(values).all() for values in _floats(outputs)):
            found.append(operation)
            raise _Seen
        return outputs

    _run(network, around)
    return "".join(f", from {describe(operation)} on" for operation in found)


def check_contrast(network: keras.Model) -> None:
    """Checks how much contrast images have left when they reach the first weights.

    Raises:
      DPMixError: almost none; usually because they are divided by 255 a second time.
    """
    culprits: list[Any] = []
    left: list[float] = []

    def around(operation, call, *arguments, **settings):
        incoming = _range(arguments)
        if getattr(operation, "weights", None):
            left.append(incoming)
            raise _Seen
        outputs = call(*arguments, **settings)
        if incoming >= _LEAST_CONTRAST > _range(outputs):
            culprits.append(operation)
        return outputs

    _run(network, around)
    if culprits and left and left[0] < _LEAST_CONTRAST:
        raise DPMixError(
            f"{describe(culprits[-1])} leaves images a range of only {left[0]:.2g}. "
            "Images reach the network as float32 in [0, 1] already: dpmix_tf divides "
            "uint8 images by 255, and float images are yours to scale. Remove it."
        )


def _range(values: Any) -> float:
    arrays = list(_floats(values))
    if not arrays:
        return 0.0
    return max(float(a.max()) for a in arrays) - min(float(a.min()) for a in arrays)


def _floats(values: Any) -> Iterator[np.ndarray]:
    for value in keras.tree.flatten(values):
        if keras.ops.is_tensor(value):
            yield np.asarray(value, np.float32)


def describe(layer: Any) -> str:
    """Names a layer, or an operation in a graph, for a message."""
    return f"Layer {layer.name!r} ({type(layer).__name__})"
