"""Analyses a network's graph of layers: where training starts, and its size."""

import hashlib
import json
import math
from typing import Any

import keras
import numpy as np

from dpmix_tf.models.scattering import Scattering
from dpmix_tf.values import without_names


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
    graph = _as_functional(network)
    if graph is None:
        return None, network
    network = graph
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


def dense_layers(network: keras.Model) -> list[keras.layers.Layer] | None:
    """Returns a network's layers in order if they are a chain of plain dense layers.

    Layers without weights may stand between them; privacy.dense has the clipped sum of
    such a chain in closed form.

    Args:
      network: features -> logits, such as `rest` of split_frozen_front.

    Returns:
      The layers; None if the network is anything else, or does not compute in float32.
    """
    graph = _as_functional(network)
    if graph is None or len(graph.outputs) != 1:
        return None
    chain, last = [], graph.inputs
    for layer, inputs, outputs in _nodes(graph):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        dense = type(layer) is keras.layers.Dense
        plain = dense and not (layer.lora_enabled or layer.quantization_mode)
        in_line = len(inputs) == len(outputs) == 1 and inputs[0] is last[0]
        if not in_line or layer in chain or layer.compute_dtype != "float32":
            return None
        if not (plain or isinstance(layer, keras.Layer) and not layer.variables):
            return None
        chain.append(layer)
        last = outputs
    return chain if last[0] is graph.outputs[0] else None


def _as_functional(network: keras.Model) -> keras.Model | None:
    """The network with a graph of its layers; None if it has none."""
    if isinstance(network, keras.Sequential):
        network = keras.Model(network.inputs[0], network.outputs[0])
    return network if hasattr(network, "_nodes_by_depth") else None


def _nodes(network):
    """(layer, input tensors, output tensors) of a functional model, inputs first."""
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            yield (
                node.operation,
                keras.tree.flatten(node.arguments.keras_tensors),
                keras.tree.flatten(node.outputs),
            )


def network_digest(network: keras.Model) -> str:
    """SHA-256 of what a functional network computes: its layers, settings and weights.

    Layers' names do not count: Keras numbers them anew in every process.
    """
    content = hashlib.sha256(json.dumps(_description(network), default=str).encode())
    for variable in network.variables:
        content.update(np.ascontiguousarray(variable).tobytes())
    return content.hexdigest()


def _description(network: keras.Model) -> list[Any]:
    """Layers in order, with what each of them takes."""
    if not hasattr(network, "_nodes_by_depth"):
        return [without_names(network.get_config())]
    numbers: dict[int, int] = {}
    rows: list[Any] = []
    for layer, inputs, outputs in _nodes(network):
        settings = (
            _description(layer)
            if isinstance(layer, keras.Model)
            else without_names(layer.get_config())
        )
        taken = [numbers[id(tensor)] for tensor in inputs]
        for tensor in outputs:
            numbers.setdefault(id(tensor), len(numbers))
        rows.append([type(layer).__name__, settings, taken])
    return rows


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
