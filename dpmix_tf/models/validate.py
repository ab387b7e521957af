"""Refuses networks through which one example could reach beyond its own gradient."""

import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.data_format import require_channels_last
from dpmix_tf.models.forward import SideEffect, traced
from dpmix_tf.models.structure import split_frozen_front
from dpmix_tf.models.trial import (
    check_contrast,
    check_logits,
    describe,
    public_images,
)

_INSTEAD = {
    "BatchNormalization": "keras.layers.GroupNormalization",
    "MixUp": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
    "CutMix": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
    "FourierMix": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
    "Mosaic": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
}


def validate_network(network: keras.Model) -> None:
    """Checks that a network is allowed under differential privacy, and can learn.

    Five ways for an example to reach beyond its own clipped gradient are ruled out:
    layers known to mix examples; layers adapted to data; state that the forward pass
    writes (moving averages of activations are not noised), in whatever variable;
    outputs for one example that change with another; and random layers such as Dropout,
    whose draws follow a seed that is not secret and a count of the private batches'
    examples. The last three are detected in the traced computation, or by trying images
    of noise, rather than by the layers' names.

    Layers that no trainable weight precedes run in inference mode and may do any of
    these: a frozen BatchNormalization only applies constants. Adapted layers are part
    of what a network with `public_weights` declares public.

    A network that could not learn is refused too, before it spends any budget: its
    outputs are not logits, do not distinguish images, or are not finite.

    Args:
      network: a built Keras model, images -> logits [n,classes].

    Raises:
      DPMixError: names the layer and what to use instead.
    """
    require_channels_last()
    _check_form(network)
    layers = list(network._flatten_layers())
    for layer in reversed(layers):  # the parts before the whole
        _check_dtype(layer)
    for layer in layers:
        _check_layer(layer)
        arguments = _adapted(layer)
        if arguments and not getattr(network, "public_weights", False):
            raise DPMixError(
                f"{describe(layer)} was adapted to data: its statistics are in the "
                "network without clipping or noise. Adapt on public images and pass "
                "the result to the constructor: "
                f"keras.layers.{type(layer).__name__}({arguments})."
            )
    if not network.trainable_variables:
        raise DPMixError(f"{network.name!r} has no trainable variables: nothing to do.")
    # A model validates when it is created and again when it is compiled.
    form = tuple((id(part), part.trainable) for part in _parts(network))
    if _TRIED.get(network) != form:
        _try(network)
        _TRIED[network] = form


# Networks that passed the trial, and what was frozen in them then.
_TRIED: weakref.WeakKeyDictionary[keras.Model, tuple[Any, ...]] = (
    weakref.WeakKeyDictionary()
)


def _parts(network: keras.Model) -> list[Any]:
    return [*network._flatten_layers(), *network.variables]


def _try(network: keras.Model) -> None:
    """Traces the network, checks what it does, and runs it on noise."""
    images = public_images(network.input_shape[1:])
    front, rest = split_frozen_front(network)
    features: Any = images
    if front is not None:
        _refuse_idle_random_layers(front)
        _, effects = traced(front, images[0].shape, training=False)
        _refuse(network, effects)
        # Twice is too seldom for a traced function to pay.
        features = tuple(front(batch, training=False) for batch in images)
    dtype = tf.as_dtype(features[0].dtype)
    forward, effects = traced(rest, features[0].shape, training=True, dtype=dtype)
    _refuse(network, effects)
    if network.losses:
        raise DPMixError(
            f"{network.name!r} has layers with regularisers: dpmix_tf trains on the "
            "mean loss of an example's views alone and would ignore them silently. "
            "Use the optimizer's weight_decay instead."
        )
    check_contrast(network)
    check_logits(network, forward, features)


def _check_form(network: keras.Model) -> None:
    """Requires one tensor of images in and one of logits out, of known shapes."""
    name = repr(network.name)
    if isinstance(network, keras.Sequential) and not network.built:
        raise DPMixError(
            f"{name} has no input shape yet. Begin it with keras.Input((H, W, C))."
        )
    if not isinstance(network, keras.Sequential) and not hasattr(
        network, "_nodes_by_depth"
    ):
        raise DPMixError(
            f"{name} ({type(network).__name__}) is a subclass of keras.Model, which "
            "cannot be inspected. Make a functional model of it: inputs = "
            "keras.Input((H, W, C)); network = keras.Model(inputs, model(inputs))."
        )
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise DPMixError(
            f"{name} has {len(network.inputs)} input(s) and {len(network.outputs)} "
            "output(s); expected one of each, images and logits. Make a keras.Model of "
            "these two."
        )
    if keras.tree.is_nested(getattr(network, "_outputs_struct", None)):
        raise DPMixError(
            f"{name} emits a {type(network._outputs_struct).__name__} that holds its "
            "logits; expected the tensor itself. Rebuild it as keras.Model(images, "
            "logits)."
        )
    shape = tuple(network.inputs[0].shape)
    if len(shape) != 4 or None in shape[1:]:
        raise DPMixError(
            "The network must take images of one fixed size, input shape "
            f"(None, H, W, C); received: {shape}."
        )
    if network.inputs[0].dtype not in ("float32", "bfloat16"):
        raise DPMixError(
            f"The input of {name} is {network.inputs[0].dtype}; images reach it as "
            "float32 in [0, 1], since dpmix_tf divides uint8 images by 255. Use "
            "keras.Input((H, W, C)), and no layer that divides again."
        )
    shape = tuple(network.outputs[0].shape)
    if len(shape) != 2 or (shape[1] or 0) < 2:
        raise DPMixError(
            "The network must emit logits of shape (None, classes), with two or more "
            f"classes; received: {shape}."
        )


def _check_layer(layer: Any) -> None:
    """Refuses a layer by its type and attributes."""
    kind = type(layer).__name__
    frozen = kind == "BatchNormalization" and not layer.trainable
    if kind in _INSTEAD and not frozen:
        raise DPMixError(
            f"{describe(layer)} computes across the examples of a batch or keeps "
            "un-noised statistics of them, which clipping cannot bound. Use "
            f"{_INSTEAD[kind]} instead."
        )
    if getattr(layer, "stateful", False):
        raise DPMixError(
            f"{describe(layer)} carries state from one batch to the next, which "
            "clipping cannot bound. Build it with stateful=False."
        )


def _check_dtype(layer: Any) -> None:
    """Refuses float16: its loss scaling is incompatible with private gradients."""
    trained = {str(v.dtype) for v in layer.trainable_variables} - {"float32"}
    if layer.compute_dtype == "float16" or trained:
        raise DPMixError(
            f"{describe(layer)} computes in {layer.compute_dtype} with weights in "
            f"{layer.variable_dtype}; gradients are clipped and noised in float32. "
            'Build it with dtype="float32" or dtype="mixed_bfloat16".'
        )


def _adapted(layer: Any) -> str | None:
    """Returns the arguments that would replace `adapt`; None if it found nothing."""
    if isinstance(layer, keras.layers.Normalization):
        found = layer.built and layer.input_mean is None
        moved = found and (
            np.any(layer.adapt_mean) or np.any(np.asarray(layer.adapt_variance) != 1)
        )
        return "mean=..., variance=..." if moved else None
    if isinstance(layer, keras.layers.Discretization):
        found = layer.summary is not None and layer.bin_boundaries is not None
        return "bin_boundaries=..." if found else None
    # For the layers that look up words or numbers.
    given = getattr(layer, "_has_input_vocabulary", True)
    return None if given else "vocabulary=..."


def _refuse_idle_random_layers(front: keras.Model) -> None:
    """Refuses layers that would be random if the front ran in training mode.

    Frozen layers are not meant to be random: an encoder's own Dropout stays off.
    """
    trainable = [
        layer
        for layer in front._flatten_layers(include_self=False)
        if layer.trainable and not layer.weights and layer.variables
    ]
    if not trainable:
        return
    _, effects = traced(front, (2, *front.input_shape[1:]), training=True)
    for effect in effects:
        if effect.random and effect.layer in trainable:
            raise DPMixError(
                f"{describe(effect.layer)} would have no effect: no trained weight "
                "precedes it, and such layers run in inference mode. Remove it, and "
                "give the views an augmentation (augment=...) for random images; or "
                "freeze it with trainable=False if it is meant to be off."
            )


def _refuse(network: keras.Model, effects: list[SideEffect]) -> None:
    """Refuses a forward pass that has side effects."""
    for effect in effects:
        layer = describe(effect.layer or network)
        if effect.random:
            raise DPMixError(
                f"{layer} draws random numbers from a seed that is not secret, and "
                "counts the examples of private batches. Remove it; the noise "
                "regularises already."
            )
        if effect.operation.endswith("PyFunc"):
            raise DPMixError(
                f"{layer} calls Python, which may keep what it sees. Write it with "
                "keras.ops or TensorFlow."
            )
        raise DPMixError(
            f"{layer} writes to {effect.variable or 'persistent state'} in its "
            f"forward pass ({effect.operation}): state computed from private images "
            "without noise. Remove the layer, or freeze it."
        )
