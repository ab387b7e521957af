"""The closed form for heads of dense layers: the same sum, no record longer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf.models import dense_layers
from dpmix_tf.privacy.clipping import add_vectorised
from dpmix_tf.privacy.dense import add_dense, choose_dense_chunk_size
from dpmix_tf.privacy.mechanism import GaussianMechanism
from tests.conftest import plan_for

HEADS = {
    # Norms from products of pairs of views; from the gradient itself; of one view.
    "pairs": ((30,), [20], 3),
    "products": ((30,), [4], 9),
    "one view": ((130,), [5], 1),
    "two layers": ((70,), [16, 5], 6),
    "at positions": ((3, 3, 8), [6], 2),
}


def head_of(shape, widths, classes=None):
    inputs = values = keras.Input(shape)
    for width in widths[:-1]:
        values = keras.layers.Dense(width, activation="gelu")(values)
    if len(shape) > 1:
        values = keras.layers.Dense(7)(values)
        values = keras.layers.Flatten()(keras.layers.ReLU()(values))
    return keras.Model(inputs, keras.layers.Dense(widths[-1])(values))


def losses(logits, labels):
    return -tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=-1)


def both_ways(network, views, labels, counted=None, **plan):
    """(sum, losses, norms) in closed form, and with a gradient for each record."""
    mechanism = GaussianMechanism(plan_for(40, **plan), seed=1)
    counted = tf.ones(len(views), tf.bool) if counted is None else counted
    variables = network.trainable_variables

    def mean_loss(views, labels):
        return tf.reduce_mean(losses(network(views, training=True), labels))

    ways = (
        add_dense(variables, dense_layers(network), losses),
        add_vectorised([v.value for v in variables], mean_loss, len(views)),
    )
    for add in ways:
        graph = tf.function(
            lambda add=add: add(
                mechanism, mechanism.zero(variables), counted, views, labels
            )
        )
        yield graph()


def examples(shape, classes, views, count=8):
    random = np.random.default_rng(0)
    made = random.normal(size=(count, views, *shape)).astype(np.float32)
    labels = random.dirichlet(np.ones(classes), (count, views)).astype(np.float32)
    return tf.constant(made), tf.constant(labels)


@pytest.mark.parametrize("clipping", ["fixed", "automatic"])
@pytest.mark.parametrize("clip", [0.05, 1e6])
@pytest.mark.parametrize("kind", HEADS)
def test_the_closed_form_equals_a_gradient_for_each_record(kind, clip, clipping):
    shape, widths, views = HEADS[kind]
    network = head_of(shape, widths)
    data = examples(shape, widths[-1], views)
    counted = tf.constant([True] * 6 + [False] * 2)
    closed, expected = both_ways(network, *data, counted, clip=clip, clipping=clipping)
    for part, other in zip(closed[0], expected[0], strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(part, other, atol=1e-5 * scale, rtol=1e-5)
    np.testing.assert_allclose(closed[1], expected[1], rtol=1e-5)
    np.testing.assert_allclose(closed[2], expected[2], rtol=1e-5)


@pytest.mark.parametrize("clipping", ["fixed", "automatic"])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9, 1e18])
@pytest.mark.parametrize("kind", HEADS)
def test_no_record_counts_more_than_the_clip_norm(kind, size, clipping):
    shape, widths, views = HEADS[kind]
    network = head_of(shape, widths)
    data, labels = examples(shape, widths[-1], views, count=1)
    mechanism = GaussianMechanism(plan_for(40, clip=0.01, clipping=clipping), seed=1)
    add = add_dense(network.trainable_variables, dense_layers(network), losses)
    zero = mechanism.zero(network.trainable_variables)
    total, _, _ = add(mechanism, zero, tf.ones(1, tf.bool), size * data, labels)
    length = np.sqrt(sum(np.sum(np.square(part, dtype=np.float64)) for part in total))
    assert length <= 0.01


@pytest.mark.parametrize("trial", range(8))
def test_views_that_cancel_are_not_taken_for_shorter_than_they_are(trial):
    """Terms of a norm from pairs of views may be a million times their sum."""
    network = head_of((300,), [30])
    network.layers[-1].kernel.assign(tf.zeros([300, 30]))
    random = np.random.default_rng(trial)
    one = 1e3 * random.normal(size=(1, 1, 300))
    views = one + 1e-3 * random.normal(size=(1, 3, 300))
    # Gradients by logits are softmax - label: these three add up to almost nothing.
    first = random.normal(size=28)
    label = np.full((1, 3, 30), 1 / 30)
    label[0, 0, :28] += first - first.mean()
    label[0, 1, :28] -= first - first.mean()
    label[0, 2, 28:] += [1e-4, -1e-4]
    views, labels = tf.constant(views, tf.float32), tf.constant(label, tf.float32)
    closed, _ = both_ways(network, views, labels, clip=1e-3)
    # The rows that are added up, in exact arithmetic.
    plan = plan_for(40, clip=1e-3)
    scale = tf.cast(GaussianMechanism(plan, seed=1).scales(
        tf.cast(closed[2], tf.float64), tf.ones(1, tf.bool)
    ), tf.float64)  # fmt: skip
    probabilities = tf.nn.softmax(tf.zeros([3, 30])) * tf.reduce_sum(
        labels[0], -1, keepdims=True
    )
    rows = tf.cast(probabilities - labels[0], tf.float64) / 3
    exact = tf.matmul(tf.cast(views[0], tf.float64), rows, transpose_a=True)
    bias = tf.reduce_sum(rows, axis=0)
    length = scale * tf.sqrt(tf.reduce_sum(exact**2) + tf.reduce_sum(bias**2))
    assert length <= 1e-3 * (1 + 1e-6)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_records_that_are_not_finite_count_for_nothing(kind, broken):
    shape, widths, views = HEADS[kind]
    network = head_of(shape, widths)
    data, labels = examples(shape, widths[-1], views)
    spoiled = data.numpy()
    spoiled[2].flat[0] = broken
    spoiled = tf.constant(spoiled)
    total, _, norms = next(iter(both_ways(network, spoiled, labels, clip=0.1)))
    without = tf.constant([row != 2 for row in range(8)])
    if not np.isfinite(norms[2]):
        expected, _, _ = next(iter(both_ways(network, data, labels, without, clip=0.1)))
        for part, other in zip(total, expected, strict=True):
            np.testing.assert_allclose(part, other, atol=1e-6)
    assert np.isfinite(np.concatenate([np.ravel(part) for part in total])).all()


def test_automatic_clipping_makes_every_record_as_long_as_the_clip_norm():
    network = head_of((30,), [4])
    data, labels = examples((30,), 4, 2)
    for size in (1e-2, 1.0, 1e3):
        total, _, norms = next(
            iter(
                both_ways(
                    network,
                    size * data[:1],
                    labels[:1],
                    clip=0.5,
                    clipping="automatic",
                    gamma=0.01,
                )
            )
        )
        length = np.sqrt(sum(np.sum(np.square(p, dtype=np.float64)) for p in total))
        np.testing.assert_allclose(length, 0.5 * norms[0] / (norms[0] + 0.01), 1e-5)


def test_only_plain_chains_have_a_closed_form():
    def network(*layers):
        return keras.Sequential([keras.Input((6, 6, 2)), *layers])

    flat = keras.layers.Flatten()
    assert len(dense_layers(network(flat, keras.layers.Dense(3)))) == 2
    first = keras.layers.Conv2D(2, 3)
    assert dense_layers(network(first, flat, keras.layers.Dense(3))) is None
    twice = keras.layers.Dense(3)
    assert dense_layers(network(flat, keras.layers.Dense(3), twice, twice)) is None
    half = keras.layers.Dense(3, dtype="mixed_bfloat16")
    assert dense_layers(network(flat, half)) is None

    class Another(keras.layers.Dense):
        def call(self, inputs, training=None):
            return super().call(inputs) * 2

    assert dense_layers(network(flat, Another(3))) is None
    inputs = keras.Input((4,))
    values = keras.layers.Dense(4)(inputs)
    residual = keras.layers.Add()([values, inputs])
    assert dense_layers(keras.Model(inputs, keras.layers.Dense(2)(residual))) is None


def test_frozen_layers_of_a_chain_have_no_part_in_the_sum():
    network = head_of((20,), [8, 3])
    network.layers[1].trainable = False
    closed, expected = both_ways(network, *examples((20,), 3, 2), clip=0.1)
    assert len(closed[0]) == 2
    for part, other in zip(closed[0], expected[0], strict=True):
        np.testing.assert_allclose(part, other, atol=1e-6)


def test_a_chunk_is_as_large_as_its_numbers_allow():
    assert choose_dense_chunk_size(1, 15_552, 10, 8_192) == 512
    assert choose_dense_chunk_size(34, 1_280, 10, 1_000) == 128
    assert choose_dense_chunk_size(34, 150_528, 10, 1_000) == 1
    assert choose_dense_chunk_size(1, 64, 10, 32) == 8
    assert choose_dense_chunk_size(1, 64, 10, 0.5) == 1
