import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import (
    build_network,
    convnet,
    scattering_network,
    split_frozen_front,
    validate_network,
    vision_transformer,
    wide_resnet,
)
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for


def with_layer(*extra):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            *extra,
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


class RunningMean(layers.Layer):
    """Keeps statistics of activations, as BatchNormalization does."""

    def build(self, input_shape):
        self.mean = self.add_weight(shape=(), trainable=False)

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x))
        return x


def test_wide_resnet_16_4_has_the_published_number_of_parameters():
    network = wide_resnet(depth=16, width=4, input_shape=(32, 32, 3), num_classes=10)
    assert network.count_params() == 2_748_890


def in_order_of_making(network, kind):
    """The weights of a network's layers of one kind; Keras numbers their names."""
    found = [layer for layer in network.layers if type(layer).__name__ == kind]
    found.sort(key=lambda layer: int(re.search(r"_(\d+)$|$", layer.name)[1] or 0))
    return iter([layer.get_weights() for layer in found])


def by_hand(network, images, order):
    """A WRN-10-2 from plain operations and the network's weights."""
    convolutions = in_order_of_making(network, "Conv2D")
    norms = in_order_of_making(network, "GroupNormalization")
    own = order == "shortcut_norm_first"

    def convolve(x, stride=1):
        kernel, *bias = next(convolutions)
        return tf.nn.conv2d(x, kernel, stride, "SAME") + sum(bias)

    def normalise(x, gamma, beta, groups=4):
        n, h, w, c = x.shape
        grouped = tf.reshape(x, [n, h, w, groups, c // groups])
        mean, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
        normal = (grouped - mean) / tf.sqrt(variance + 1e-3)
        return tf.reshape(normal, x.shape) * gamma + beta

    def activate(x, norm_first=order == "norm_first"):
        gamma, beta = next(norms)
        if norm_first:
            return tf.nn.relu(normalise(x, gamma, beta))
        return normalise(tf.nn.relu(x), gamma, beta)

    x = convolve(2 * images - 1)
    for channels, stride in ((32, 1), (64, 2), (128, 2)):
        active = activate(x)
        source = activate(x, norm_first=True) if own else active
        shortcut = convolve(source, stride)
        y = convolve(active, stride)
        assert shortcut.shape[-1] == channels
        x = shortcut + convolve(activate(y))
    x = tf.reduce_mean(activate(x), [1, 2])
    kernel, bias = network.get_layer("logits").get_weights()
    return x @ kernel + bias


@pytest.mark.parametrize(
    ("order", "parameters"),
    [
        ("activation_first", 2_748_890),
        ("norm_first", 2_748_890),
        ("shortcut_norm_first", 2_751_562),
    ],
)
def test_each_order_of_norm_and_activation_is_what_it_says(order, parameters):
    network = wide_resnet(
        depth=10, width=2, groups=4, input_shape=(8, 8, 1), num_classes=3, order=order
    )
    random = np.random.default_rng(0)
    for variable in network.variables:  # biases and norms, too
        variable.assign(random.normal(0, 0.3, variable.shape))
    images = random.random((2, 8, 8, 1), np.float32)
    np.testing.assert_allclose(
        network(images), by_hand(network, images, order), rtol=1e-4, atol=1e-5
    )
    validate_network(network)
    whole = wide_resnet(input_shape=(32, 32, 3), num_classes=10, order=order)
    assert whole.count_params() == parameters
    kernels = [v.numpy() for v in whole.trainable_variables if len(v.shape) == 4]
    largest = max(kernels, key=np.size)
    assert np.std(largest) == pytest.approx(
        np.prod(largest.shape[:3]) ** -0.5, rel=0.02
    )


def test_an_unknown_order_is_refused_and_other_activations_are_taken():
    shape = {"depth": 10, "width": 1, "input_shape": (8, 8, 1), "num_classes": 3}
    with pytest.raises(ValueError, match="order must be one of activation_first"):
        wide_resnet(**shape, groups=4, order="0")
    network = wide_resnet(**shape, groups=4, activation="tanh")
    activations = [one for one in network.layers if type(one).__name__ == "Activation"]
    assert all(one.activation is keras.activations.tanh for one in activations)
    for one in (network, convnet(input_shape=(8, 8, 1), num_classes=3)):
        validate_network(one)


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_a_scattering_network_trains_its_head_alone(hidden):
    network = scattering_network(
        input_shape=(16, 16, 3), num_classes=4, hidden=hidden, features="group_norm"
    )
    validate_network(network)
    front, rest = split_frozen_front(network)
    assert not front.variables and len(rest.variables) == len(network.variables)
    features = front(np.random.default_rng(0).random((2, 16, 16, 3), np.float32))
    np.testing.assert_allclose(np.mean(features), 0.0, atol=1e-5)
    # Of noise, second-order features are as faint as what keeps from dividing by 0.
    scale = np.std(features) * np.sqrt(features.shape[1]) / 10.0
    assert 0.5 < scale <= 1.001
    assert np.all(network(np.zeros((1, 16, 16, 3), np.float32)) == 0)


@pytest.mark.parametrize("standardized", [False, True])
def test_shipped_networks_are_allowed_and_emit_logits(standardized):
    for network in (
        convnet(input_shape=(8, 8, 1), num_classes=7),
        wide_resnet(
            depth=10,
            width=1,
            input_shape=(16, 16, 3),
            num_classes=7,
            weight_standardization=standardized,
        ),
        vision_transformer(
            input_shape=(8, 8, 1), num_classes=7, depth=2, width=12, heads=2
        ),
    ):
        validate_network(network)
        images = np.random.default_rng(0).random((2, *network.input_shape[1:]))
        logits = np.asarray(network(images))
        assert logits.shape == (2, 7)
        assert not np.allclose(logits.sum(-1), 1)


def test_standardized_kernels_have_mean_zero_and_the_learnt_gain():
    network = wide_resnet(
        depth=10,
        width=1,
        input_shape=(8, 8, 3),
        num_classes=2,
        weight_standardization=True,
    )
    layer = next(layer for layer in network.layers if hasattr(layer, "gain"))
    image = np.random.default_rng(0).random((1, 8, 8, 3)).astype(np.float32)
    before = layer(image)
    # Neither a shift nor a positive scale of a kernel changes anything.
    layer.kernel.assign(3 * layer.kernel + 0.5)
    np.testing.assert_allclose(before, layer(image), atol=1e-4)
    layer.gain.assign(2 * layer.gain)
    np.testing.assert_allclose(2 * before, layer(image), atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (layers.BatchNormalization, "GroupNormalization"),
        (RunningMean, "writes to"),
        (
            lambda: layers.Lambda(lambda x: x - keras.ops.mean(x, 0, keepdims=True)),
            "changes with another image",
        ),
        (lambda: layers.ActivityRegularization(0.1), "weight_decay"),
    ],
)
def test_layers_that_reach_beyond_one_example_are_refused(layer, words):
    with pytest.raises(DPMixError, match=words):
        validate_network(with_layer(layer()))


def test_the_refused_layer_is_named_even_inside_another_model():
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.BatchNormalization(name="the_culprit")]
    )
    with pytest.raises(DPMixError, match="the_culprit"):
        validate_network(with_layer(inner))


def test_frozen_batch_normalisation_is_constant_and_allowed():
    network = with_layer(layers.BatchNormalization())
    network.layers[1].trainable = False
    validate_network(network)


@pytest.mark.parametrize("kind", [layers.Dropout, layers.GaussianNoise])
def test_random_layers_are_refused_where_something_trains(kind):
    with pytest.raises(DPMixError, match="culprit.*seed that is not secret"):
        validate_network(with_layer(kind(0.5, name="culprit")))
    validate_network(with_layer(layers.Dropout(0.0)))


def test_random_layers_are_still_below_what_trains():
    network = with_layer(layers.Dropout(0.5))
    for layer in network.layers[:-1]:
        layer.trainable = False
    before = [np.asarray(variable) for variable in network.variables]
    validate_network(network)
    front, _ = split_frozen_front(network)
    assert any("seed_generator" in v.path for v in front.variables)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_networks_of_the_wrong_form_are_refused():
    with pytest.raises(DPMixError, match="logits"):
        validate_network(
            keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3)])
        )
    with pytest.raises(DPMixError, match="one fixed size"):
        validate_network(keras.Sequential([keras.Input((8,)), layers.Dense(3)]))
    frozen = with_layer()
    frozen.trainable = False
    with pytest.raises(DPMixError, match="nothing to do"):
        validate_network(frozen)


def test_a_vision_transformers_sums_are_those_of_single_examples():
    """Attention is vectorised over a chunk, and no patch sees another image's."""
    network = vision_transformer(
        input_shape=(8, 8, 1), num_classes=10, depth=2, width=12, heads=2
    )
    assert (
        5.2e6
        < vision_transformer(input_shape=(32, 32, 3), num_classes=10).count_params()
        < 5.8e6
    )
    images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    sums = [
        DPMixModel(
            network,
            plan=plan_for(40, clip=0.5),
            views=views.dp_mix_self(base=2, mixed=1),
            seed=1,
            chunk_size=chunk,
        ).clipped_gradient_sum(images, np.arange(5))
        for chunk in (1, 3)
    ]
    for one, other in zip(*sums, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vision_transformer", {"patch_size": 3}),
        ("vgg", {}),
        ("convnet", {"depth": 3}),
        ("wide_resnet", {"depth": 12}),
        ("convnet", {"widths": (5,), "groups": 4}),
    ],
)
def test_networks_that_do_not_build_say_why(name, arguments):
    with pytest.raises(DPMixError, match=name):
        build_network(name, input_shape=(8, 8, 1), num_classes=3, arguments=arguments)
