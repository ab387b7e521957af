"""The replacements inside tf.vectorized_map: same numbers, and still in effect."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor

from dpmix_tf.models import vision_transformer
from dpmix_tf.privacy._vectorization import replaced_operations

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
        with replaced_operations():
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


PRODUCTS = {  # one example's operands; whether the second is the same for all
    "projection": ((1, 5, 6), (6, 7), True),
    "projection of two views": ((2, 5, 6), (6, 7), True),
    "weights for a batch of one": ((1, 5, 6), (1, 6, 7), True),
    "per example": ((1, 5, 6), (1, 6, 7), False),
    "heads": ((1, 3, 5, 6), (1, 3, 6, 7), False),
    "broadcast": ((3, 5, 6), (1, 6, 7), False),
}


@pytest.mark.parametrize("adjoint_a", [False, True])
@pytest.mark.parametrize("adjoint_b", [False, True])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_matrix_products_are_those_of_one_example_at_a_time(kind, adjoint_a, adjoint_b):
    first, second, shared = PRODUCTS[kind]
    if adjoint_a:
        first = (*first[:-2], first[-1], first[-2])
    if adjoint_b:
        second = (*second[:-2], second[-1], second[-2])
    one = tf.random.stateless_normal([8, *first], [1, 2])
    other = tf.random.stateless_normal([*([] if shared else [8]), *second], [3, 4])

    def product(inputs):
        return tf.raw_ops.BatchMatMulV2(
            x=inputs[0],
            y=other if shared else inputs[1],
            adj_x=adjoint_a,
            adj_y=adjoint_b,
        )

    inputs = (one,) if shared else (one, other)
    function = vectorised(product)
    expected = [product([part[i] for part in inputs]) for i in range(8)]
    np.testing.assert_allclose(function(inputs), expected, rtol=1e-4, atol=1e-5)


def test_no_attention_multiplies_matrices_beside_an_axis_of_one_view():
    """On CPUs the kernel for [n,1,t,d] x [d,e] writes beyond its tensors."""
    network = vision_transformer(
        input_shape=(8, 8, 1), num_classes=3, depth=1, width=6, heads=2
    )
    examples = tf.random.stateless_normal([8, 1, 8, 8, 1], [1, 2])
    function = vectorised(gradient_of([network], (8, 8, 1)))
    products = [op for op in operations(function, examples) if "MatMul" in op.type]
    assert products
    assert all(side.shape.rank <= 3 for op in products for side in op.inputs)


@pytest.mark.slow
def test_a_vision_transformer_trains_with_one_view_per_example():
    """In a process of its own, which used to die of a corrupted heap."""
    script = """
        import numpy as np
        from dpmix_tf import views
        from dpmix_tf.models import vision_transformer
        from dpmix_tf.training import DPMixModel
        from tests.conftest import plan_for

        sums = []
        images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
        network = vision_transformer(
            input_shape=(8, 8, 1), num_classes=10, depth=1, width=12, heads=2
        )
        for chunk_size in (8, 1):
            model = DPMixModel(
                network,
                plan=plan_for(16),
                views=views.no_augmentation(),
                seed=1,
                chunk_size=chunk_size,
            )
            for _ in range(5):
                total = model.clipped_gradient_sum(images, np.arange(16) % 10)
            sums.append(total)
        for one, other in zip(*sums):
            np.testing.assert_allclose(one, other, atol=1e-4)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_others_in_the_process_keep_tensorflows_own():
    before = dict(pfor._pfor_converter_registry), pfor._flatten_first_two_dims
    with pytest.raises(ZeroDivisionError), replaced_operations():
        assert pfor._flatten_first_two_dims is not before[1]
        raise ZeroDivisionError
    assert (dict(pfor._pfor_converter_registry), pfor._flatten_first_two_dims) == before
