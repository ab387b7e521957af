"""Traces a network's forward pass as training runs it, and finds its side effects."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from dpmix_tf.errors import DPMixError

# Stateful to TensorFlow, but still functions of their inputs and of what they read.
_HARMLESS = {
    "Assert",
    "Case",
    "CheckNumerics",
    "CheckNumericsV2",
    "CudnnRNN",
    "CudnnRNNV2",
    "CudnnRNNV3",
    "DeviceIndex",
    "If",
    "IsTensorFloat32Enabled",
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "Print",
    "PrintV2",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "StatefulPartitionedCall",
    "StatelessRandomGetAlg",
    "VarIsInitializedOp",
    "VariableShape",
    "While",
    "XlaCallModule",
}
_RANDOM = re.compile("Random|Normal|Uniform|Multinomial|Rng|NonDeterministicInts")
_MARK = re.compile(r"operation\.(\d+)\.")


class SideEffect(NamedTuple):
    """What a forward pass does besides computing its output.

    Attributes:
      layer: the layer whose call causes it; None if it belongs to no layer.
      operation: TensorFlow's operation, such as "AssignVariableOp".
      variable: name of the variable it touches; None if there is none, or if it lies
        inside a function.
      random: whether it draws random numbers, or counts how many were drawn.
    """

    layer: Any
    operation: str
    variable: str | None
    random: bool


def operations(network: keras.Model) -> list[Any]:
    """Returns the network's layers and its graphs' other operations, such as x / 2."""
    found = {}
    for layer in network._flatten_layers():
        found[id(layer)] = layer
        for operation in getattr(layer, "_operations", ()):
            found[id(operation)] = operation
    return list(found.values())


@contextlib.contextmanager
def watched(watch: list[Any], around: Callable[..., Any]) -> Iterator[None]:
    """Replaces each operation's `call` by `around(operation, call, *arguments)`."""
    for operation in watch:
        operation.__dict__["call"] = functools.partial(
            around, operation, operation.call
        )
    try:
        yield
    finally:
        for operation in watch:
            del operation.__dict__["call"]


def traced(
    network: keras.Model,
    shape: tuple[int, ...],
    *,
    training: bool,
    dtype: tf.DType = tf.float32,
) -> tuple[tf.types.experimental.ConcreteFunction, list[SideEffect]]:
    """Traces a network without running it.

    The graph shows every variable that a call can touch, however it is held: by a
    layer, in a list, in a tf.Module or by a closure.

    Args:
      network: one tensor -> one tensor.
      shape: shape of its input, including the batch size.
      training: the `training` argument of its call.
      dtype: dtype of its input.

    Returns:
      The traced function; its side effects.

    Raises:
      DPMixError: the network does not run.
    """
    watch = operations(network)
    number = {id(operation): index for index, operation in enumerate(watch)}

    def marked(operation, call, *arguments, **settings):
        with tf.name_scope(f"operation.{number[id(operation)]}."):
            return call(*arguments, **settings)

    try:
        with watched(watch, marked):
            function = tf.function(
                lambda inputs: network(inputs, training=training), autograph=False
            ).get_concrete_function(tf.TensorSpec(shape, dtype))
    except Exception as error:  # whatever a layer raises
        raise DPMixError(
            f"{network.name!r} does not run on inputs of shape {shape}: {error}"
        ) from error
    names = {
        id(variable.handle): variable.name.split(":")[0]
        for variable in function.variables
    }
    handles = {id(inner): id(outer) for outer, inner in function.graph.captures}
    seeds = {
        id(copy.handle)
        for generator in _generators(network)
        for variable in [generator.state.value]
        for copy in getattr(variable, "values", [variable])  # on each replica
    }
    effects = []
    for operation, kind in _stateful(function.graph):
        marks = _MARK.findall(operation.name)
        touched = [handles.get(id(tensor)) for tensor in operation.inputs]
        effects.append(
            SideEffect(
                layer=watch[int(marks[-1])] if marks else None,
                operation=kind,
                variable=next((names[t] for t in touched if t in names), None),
                random=bool(_RANDOM.search(kind) or seeds.intersection(touched)),
            )
        )
    return function, effects


def _generators(network: keras.Model) -> Iterator[keras.random.SeedGenerator]:
    for layer in network._flatten_layers():
        for value in vars(layer).values():
            if isinstance(value, keras.random.SeedGenerator):
                yield value


def _stateful(graph: Any) -> Iterator[tuple[tf.Operation, str]]:
    """Yields (operation, kind of stateful operation that it is or calls)."""
    library: dict[str, Any] = {}
    for operation in graph.get_operations():
        if _calls_functions(operation.type):
            if not library:
                functions = graph.as_graph_def().library.function
                library = {f.signature.name: f.node_def for f in functions}
            kinds = _kinds(_functions(operation.node_def), library, set())
        else:
            kinds = {operation.type} if _suspicious(operation.type) else set()
        for kind in sorted(kinds):
            yield operation, kind


def _kinds(names: list[str], library: dict[str, Any], seen: set[str]) -> set[str]:
    """Kinds of suspicious operations in functions, and in the functions they call."""
    kinds: set[str] = set()
    for name in names:
        if name in seen:
            continue
        seen.add(name)
        for node in library.get(name, ()):
            if _calls_functions(node.op):
                kinds |= _kinds(_functions(node), library, seen)
            elif node.op in library:
                kinds |= _kinds([node.op], library, seen)
            elif _suspicious(node.op):
                kinds.add(node.op)
    return kinds


def _functions(node: Any) -> list[str]:
    """Names of the functions that a node calls."""
    names = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        names += [function.name for function in value.list.func]
    return names


@functools.cache
def _calls_functions(kind: str) -> bool:
    definition = op_def_registry.get(kind)
    return definition is not None and any(
        attribute.type in ("func", "list(func)") for attribute in definition.attr
    )


@functools.cache
def _suspicious(kind: str) -> bool:
    definition = op_def_registry.get(kind)
    if definition is None or kind in _HARMLESS or kind.startswith("TensorArray"):
        return False
    return definition.is_stateful
