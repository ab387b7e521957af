"""Analyses a network's graph of layers: where training starts, and its size."""

import math
from typing import Any

import keras

from dpmix_tf.models.scattering import Scattering


def split_frozen_front(network: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """Splits off the layers that no trainable weight precedes.

    Their outputs do not depend on any trainable weight, so they need no tape: with a
    frozen encoder and a trainable head, the encoder is the front.

    Args:
      network: images -> logits.

    Returns:
      front, images -> features, and rest, features -> logits, which share the network's
      weights; or None and the network itself if the front has neither weights nor
      wavelets, has more than one output, or cannot be found (in a subclass of
      keras.Model).
    """
    if isinstance(network, keras.Sequential):
        network = keras.Model(network.inputs[0], network.outputs[0])
    if not hasattr(network, "_nodes_by_depth"):
        return None, network
    trained: set[int] = set()  # tensors that depend on a trainable weight
    front: set[int] = set()  # tensors that do not
    worthwhile = False
    cut: dict[int, Any] = {}  # front tensors that trained layers read
    for layer, inputs, outputs in _nodes(network):
        depends = any(id(tensor) in trained for tensor in inputs)
        if depends or getattr(layer, "trainable_variables", None):
            trained.update(id(tensor) for tensor in outputs)
            cut |= {id(tensor): tensor for tensor in inputs if id(tensor) in front}
        else:
            front.update(id(tensor) for tensor in outputs)
            worthwhile |= bool(getattr(layer, "variables", None))
            worthwhile |= isinstance(layer, Scattering)
    if not worthwhile or len(cut) != 1:
        return None, network
    (features,) = cut.values()
    return keras.Model(network.inputs[0], features), keras.Model(
        features, network.outputs[0]
    )


def _nodes(network):
    """(layer, input tensors, output tensors) of a functional model, inputs first."""
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            yield (
                node.operation,
                keras.tree.flatten(node.arguments.keras_tensors),
                keras.tree.flatten(node.outputs),
            )


def count_activations(network: keras.Model) -> int | None:
    """Counts the numbers that a network's layers output for one image.

    Returns:
      The count; None if it cannot be determined (in a subclass of keras.Model).
    """
    total = 0
    for layer in network._flatten_layers(include_self=False):
        try:
            outputs = keras.tree.flatten(layer.output)
        except (AttributeError, ValueError):  # never called, or more than once
            continue
        total += sum(math.prod(size or 1 for size in o.shape[1:]) for o in outputs)
    return total or None
