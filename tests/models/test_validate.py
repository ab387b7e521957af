"""Networks that break privacy, or cannot learn, are refused before the first update."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import pretrained, validate_network
from dpmix_tf.models.trial import public_images
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for

IMAGES = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)


def net(*inside, classes=4, **head):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *inside,
            layers.Flatten(),
            layers.Dense(classes, **head),
        ]
    )


def conv():
    return layers.Conv2D(4, 3)


def rows():
    """Images as sequences of their rows."""
    return layers.Reshape((8, 8))


def refused(network, words):
    before = [np.asarray(variable) for variable in network.variables]
    with pytest.raises(DPMixError, match=words):
        validate_network(network)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.kept = {"peaks": [tf.Variable(0.0, name="peak")]}


class KeepsPeak(layers.Layer):
    """Keeps the largest value it has seen, in a variable that Keras does not track."""

    def __init__(self, where, **settings):
        super().__init__(**settings)
        self.variable = tf.Variable(0.0, name="peak")
        if where == "list":
            self.several = [{"deep": (self.variable,)}]
        elif where == "module":
            self.module = Module()
            self.variable = self.module.kept["peaks"][0]
        self.call_function = tf.function(self.keep) if where == "function" else None

    def keep(self, x):
        self.variable.assign(tf.reduce_max(x))
        return x

    def call(self, x):
        return self.call_function(x) if self.call_function else self.keep(x)


@pytest.mark.parametrize("where", ["attribute", "list", "module", "function"])
@pytest.mark.parametrize("first", [True, False])
def test_state_in_plain_variables_is_refused_wherever_it_is_held(where, first):
    layer = KeepsPeak(where, name="culprit")
    refused(net(*((layer, conv()) if first else (conv(), layer))), "culprit.*writes to")
    assert layer.variable.numpy() == 0, "not even the trial may write to it"


def test_state_that_only_a_closure_holds_is_refused():
    kept = tf.Variable(0.0, name="closed_over")

    def keep(x):
        kept.assign_add(tf.reduce_max(x))
        return x

    refused(net(conv(), layers.Lambda(keep)), "writes to closed_over")
    assert kept.numpy() == 0


def test_state_inside_a_loop_is_refused():
    kept = tf.Variable(0.0)

    def keep(x):
        def step(count, y):
            kept.assign(tf.reduce_max(y))
            return count + 1, y

        return tf.while_loop(lambda count, y: count < 2, step, (0, x))[1]

    refused(net(conv(), layers.Lambda(keep, name="culprit")), "culprit.*writes to")


def test_plain_variables_that_are_only_read_are_constants():
    scale = tf.Variable(2.0)
    validate_network(net(layers.Lambda(lambda x: scale * x), conv()))


def test_layers_that_call_python_are_refused():
    def python(x):
        same = tf.py_function(lambda y: y, [x], tf.float32)
        return tf.ensure_shape(same, x.shape)

    refused(net(conv(), layers.Lambda(python)), "calls Python")


def test_random_numbers_are_refused_by_behaviour():
    def noisy(x):
        return x + tf.random.normal(tf.shape(x))

    refused(net(conv(), layers.Lambda(noisy)), "draws random numbers")
    refused(net(rows(), layers.LSTM(4, dropout=0.5)), "LSTM.*draws random numbers")
    refused(net(rows(), layers.GRU(4, recurrent_dropout=0.5)), "draws random numbers")


@pytest.mark.parametrize(
    "layer", [lambda: layers.LSTM(4), lambda: layers.Bidirectional(layers.GRU(4))]
)
def test_recurrent_layers_without_dropout_are_allowed(layer):
    validate_network(net(rows(), layer()))


def test_random_layers_that_would_never_fire_are_refused():
    refused(net(layers.RandomFlip(name="culprit"), conv()), "culprit.*have no effect")
    refused(net(layers.GaussianNoise(0.1), conv()), "have no effect")
    encoder = keras.Sequential(
        [keras.Input((8, 8, 1)), conv(), layers.Dropout(0.5), layers.RandomFlip()]
    )
    encoder.trainable = False
    validate_network(net(encoder))  # an encoder's own are off, as its owner expects
    refused(
        net(encoder, layers.Dropout(0.5, name="culprit")), "culprit.*have no effect"
    )


def adapted(layer):
    layer.adapt(IMAGES)
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: layers.Normalization(axis=None), r"Normalization\(mean=..., var"),
        (lambda: layers.Discretization(num_bins=4), r"Discretization\(bin_bound"),
    ],
)
def test_layers_adapted_to_data_are_refused(layer, words):
    refused(net(adapted(layer()), conv()), words)


def test_an_adapted_layer_inside_a_frozen_front_is_refused():
    front = keras.Sequential(
        [keras.Input((8, 8, 1)), adapted(layers.Normalization(axis=None)), conv()]
    )
    front.trainable = False
    network = net(front)
    refused(network, "was adapted to data")
    network.public_weights = True  # an encoder from a public file, as the card says
    validate_network(network)


def test_a_public_encoder_that_was_adapted_trains_and_comes_back(tmp_path):
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), adapted(layers.Normalization(axis=None)), conv()]
    )
    encoder.save(tmp_path / "encoder.keras")
    network = pretrained(
        input_shape=(8, 8, 1), num_classes=4, encoder=str(tmp_path / "encoder.keras")
    )
    model = DPMixModel(network, plan=plan_for(40), views=views.no_augmentation())
    model.compile("sgd")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.compile("sgd")
    assert again.network.public_weights


def test_constants_that_the_user_gives_are_taken():
    validate_network(net(layers.Normalization(mean=0.5, variance=0.08), conv()))
    validate_network(net(layers.Normalization(), conv()))


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (layers.Softmax, "softmax.*remove the activation"),
        (lambda: layers.Activation("sigmoid"), "between 0 and 1.*remove"),
        (lambda: layers.Activation("tanh"), "between -1 and 1.*remove"),
        (
            lambda: layers.Lambda(
                lambda x: tf.exp(x) / tf.reduce_sum(tf.exp(x), -1, keepdims=True)
            ),
            "softmax",
        ),
    ],
)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("start", ["zeros", "glorot_uniform"])
def test_outputs_that_are_no_logits_are_refused(end, words, classes, start):
    network = net(conv(), classes=classes, kernel_initializer=start)
    network.add(end())
    refused(network, words)


@pytest.mark.parametrize("seed", range(10))
def test_short_features_are_not_taken_for_probabilities(seed):
    keras.utils.set_random_seed(seed)
    short = layers.UnitNormalization()
    network = net(layers.Flatten(), layers.Dense(8), short, classes=2, use_bias=False)
    validate_network(network)


def test_a_head_that_starts_at_zero_is_allowed():
    validate_network(net(conv(), kernel_initializer="zeros"))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Rescaling(1 / 255, name="culprit"),
        lambda: layers.Rescaling(1 / 127.5, -1, name="culprit"),
        lambda: layers.Lambda(lambda x: x / 255, name="culprit"),
        lambda: keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255, name="culprit")]
        ),
    ],
)
def test_dividing_images_by_255_once_more_is_refused(layer):
    refused(net(layer(), conv()), r"culprit.*in \[0, 1\] already.*Remove it")


def test_other_scales_are_allowed():
    validate_network(net(layers.Rescaling(2.0, -1), conv()))
    there_and_back = layers.Rescaling(255.0), layers.Rescaling(1 / 255)
    validate_network(net(*there_and_back, conv()))


def test_dividing_in_a_functional_graph_is_refused():
    images = keras.Input((8, 8, 1))
    logits = layers.Dense(4)(layers.Flatten()(images / 255.0))
    refused(keras.Model(images, logits), r"TrueDivide.*in \[0, 1\] already")


def test_uint8_inputs_are_refused():
    images = keras.Input((8, 8, 1), dtype="uint8")
    logits = layers.Dense(4)(layers.Flatten()(images))
    refused(keras.Model(images, logits), "input.*uint8.*float32 in")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(4)

    def call(self, images):
        return self.dense(self.flatten(images))


def test_subclassed_models_say_how_to_become_functional_ones_and_then_work():
    model = Subclassed()
    with pytest.raises(DPMixError, match="Make a functional model"):
        validate_network(model)
    model(IMAGES)
    refused(model, r"inputs = keras.Input\(\(H, W, C\)\)")
    images = keras.Input((8, 8, 1))
    network = keras.Model(images, model(images))
    plan = plan_for(40, clip=0.5)
    for chunk in (1, 3):
        private = DPMixModel(
            network, plan=plan, views=views.no_augmentation(), chunk_size=chunk
        )
        total = private.clipped_gradient_sum(IMAGES[:3], np.arange(3))
        assert 0 < np.sqrt(sum(np.sum(np.square(t)) for t in total)) <= 3 * 0.5


def test_a_sequential_without_an_input_shape_is_refused():
    network = keras.Sequential([layers.Flatten(), layers.Dense(4)])
    refused(network, r"Begin it with keras.Input")


def test_more_than_one_input_or_output_is_refused():
    images, others = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    logits = layers.Dense(4)(layers.Flatten()(images))
    both = layers.Dense(4)(layers.Flatten()(layers.Add()([images, others])))
    refused(keras.Model([images, others], both), "2 input")
    refused(keras.Model(images, [logits, logits]), "2 output")
    refused(keras.Model(images, {"logits": logits}), "dict that holds")
    refused(keras.Model(images, [logits]), "list that holds")
    refused(net(classes=1), "two or more classes")


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16", "float64"])
def test_a_layer_in_another_precision_is_named(dtype):
    network = net(layers.Conv2D(4, 3, dtype=dtype, name="culprit"))
    refused(network, f"culprit.*computes in {dtype.removeprefix('mixed_')}")


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "float64", "bfloat16"])
def test_a_network_in_another_precision_is_refused(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network = net(conv())
    finally:
        keras.config.set_dtype_policy(before)
    with pytest.raises(DPMixError, match="clipped and noised in float32"):
        DPMixModel(network, plan=plan_for(20), views=views.no_augmentation())


def test_a_layer_in_bfloat16_is_allowed():
    validate_network(net(layers.Conv2D(4, 3, dtype="mixed_bfloat16")))


class Log(layers.Layer):
    def call(self, x):
        return tf.math.log(x - 100)


def test_logits_that_are_not_finite_name_the_first_such_layer():
    network = net(conv(), Log(name="culprit"), conv())
    refused(network, "not finite, from Layer 'culprit'")


def test_a_loss_far_from_that_of_chance_is_refused():
    network = net(layers.Rescaling(255.0), conv(), layers.Rescaling(1e3))
    refused(network, r"cross-entropy.*log\(classes\) = 1.39")


def test_a_network_that_loses_the_image_is_refused():
    network = net(conv(), layers.Lambda(lambda x: x * 0))
    refused(network, "same logits for different images")


def test_a_network_is_tried_again_when_something_is_unfrozen():
    network = net(conv(), layers.BatchNormalization(), layers.GaussianNoise(0.1))
    for layer in network.layers[:-1]:
        layer.trainable = False
    validate_network(network)
    validate_network(network)
    network.layers[0].trainable = True
    refused(network, "draws random numbers")


def test_public_images_differ_in_more_than_noise_and_share_the_first():
    pair, other = public_images((8, 8, 1))
    assert pair.min() >= 0 and pair.max() <= 1
    np.testing.assert_array_equal(pair[0], other[0])
    assert np.abs(pair[1] - other[1]).mean() > 0.1
    assert abs(pair[0].mean() - pair[1].mean()) > 0.1


def test_variables_of_a_strategy_are_seen_too():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        validate_network(net(conv()))
        refused(net(conv(), layers.Dropout(0.5)), "draws random numbers")
        refused(net(conv(), KeepsPeak("attribute")), "writes to")
