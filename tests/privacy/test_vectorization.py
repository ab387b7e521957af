"""The replacements inside tf.vectorized_map: same numbers, and still in effect."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor

from dpmix_tf.privacy._vectorization import faster_operations

CHUNK = 3


def gradient_of(layers, shape):
    """One example's views -> the gradient of something by the layers' weights."""
    network = keras.Sequential([keras.Input(shape), *layers])
    weights = [variable.value for variable in network.trainable_variables]

    def gradient(views):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            outputs = network(views, training=True)
            result = tf.reduce_sum(tf.sin(outputs))
        return tape.gradient(result, weights)

    return gradient


def vectorised(gradient):
    @tf.function
    def over_chunk(examples):
        with faster_operations():
            return tf.vectorized_map(gradient, examples)

    return over_chunk


def operations(function, examples):
    """All of the graph, where the function of one example stays; nothing runs it."""
    graph = function.get_concrete_function(examples).graph
    inner = [f.graph for f in graph._functions.values() if hasattr(f, "graph")]
    return [op for one in [graph, *inner] for op in one.get_operations()]


def layer(**settings):
    keras.utils.set_random_seed(0)
    return keras.layers.Conv2D(4, 3, **settings)


@pytest.mark.parametrize("size", [6, 12], ids=["product", "kernels"])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": "same", "strides": 2},
        {"padding": "valid", "strides": (2, 1)},
        {"padding": "same", "dilation_rate": 2},
        {"padding": "same", "groups": 2},
    ],
    ids=str,
)
def test_filter_gradients_are_those_of_one_example_at_a_time(settings, size):
    gradient = gradient_of([layer(**settings)], (size, size, 2))
    examples = tf.random.stateless_normal([CHUNK, 2, size, size, 2], [1, 2])
    function = vectorised(gradient)
    for side_by_side, *one_by_one in zip(
        function(examples), *[gradient(one) for one in examples], strict=True
    ):
        np.testing.assert_allclose(side_by_side, one_by_one, rtol=1e-4, atol=1e-5)
    assert not any("While" in op.type for op in operations(function, examples))


@pytest.mark.parametrize("size", [6, 12])
def test_small_images_take_one_matrix_product(size):
    examples = tf.random.stateless_normal([CHUNK, 2, size, size, 2], [1, 2])
    function = vectorised(gradient_of([layer(padding="same")], (size, size, 2)))
    types = [op.type for op in operations(function, examples)]
    kernels = types.count("Conv2DBackpropFilter")
    assert kernels - 1 == (0 if 2 * size * size <= 128 else CHUNK)


def test_max_poolings_gradient_finds_its_max_pooling():
    pooled = [layer(padding="same"), keras.layers.MaxPooling2D(2)]
    gradient = gradient_of([*pooled, layer(padding="same")], (6, 6, 2))
    examples = tf.random.stateless_normal([CHUNK, 2, 6, 6, 2], [1, 2])
    function = vectorised(gradient)
    found = [op for op in operations(function, examples) if op.type == "MaxPoolGrad"]
    assert [op.inputs[1].op.type for op in found] == ["MaxPool", "MaxPool"]
    for side_by_side, *one_by_one in zip(
        function(examples), *[gradient(one) for one in examples], strict=True
    ):
        np.testing.assert_allclose(side_by_side, one_by_one, rtol=1e-4, atol=1e-5)


def test_others_in_the_process_keep_tensorflows_own():
    before = dict(pfor._pfor_converter_registry), pfor._flatten_first_two_dims
    with pytest.raises(ZeroDivisionError), faster_operations():
        assert pfor._flatten_first_two_dims is not before[1]
        raise ZeroDivisionError
    assert (dict(pfor._pfor_converter_registry), pfor._flatten_first_two_dims) == before
