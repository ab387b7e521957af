"""The clipped sum against one-example-at-a-time autograd, and its sensitivity."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import convnet, split_frozen_front, wide_resnet
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy.clipping import choose_chunk_size
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for

CLIP = 0.7


def small_convnet():
    return convnet(input_shape=(8, 8, 1), num_classes=5, widths=(8, 16), groups=4)


def small_wide_resnet():
    return wide_resnet(
        depth=10, width=1, input_shape=(8, 8, 1), num_classes=5, groups=4
    )


def standardized_wide_resnet():
    return wide_resnet(
        depth=10,
        width=1,
        input_shape=(8, 8, 1),
        num_classes=5,
        groups=4,
        weight_standardization=True,
    )


def partly_frozen_convnet():
    network = small_convnet()
    network.layers[2].trainable = False
    assert len(network.trainable_variables) < len(network.weights)
    return network


def dp_mix_diff():
    """DP-Mix_Diff over a pool of 12 random public images."""
    random = np.random.default_rng(9)
    pool = SyntheticPool(
        images=random.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8),
        labels=np.sort(np.arange(12) % 5).astype(np.int32),
        class_names=tuple("abcde"),
        digest="",
    )
    return views.dp_mix_diff(
        base=3, mixed=3, synthetic=2, augment="crop", padding=1, pool=pool
    )


def model_of(network, make_views=None, chunk_size=2, clip=CLIP):
    make_views = make_views or views.dp_mix_self(
        base=4, mixed=3, augment="crop", padding=1
    )
    return DPMixModel(
        network,
        plan=plan_for(100, clip=clip),
        views=make_views,
        seed=11,
        chunk_size=chunk_size,
    )


def examples(count, seed=0):
    random = np.random.default_rng(seed)
    images = random.random((count, 8, 8, 1), dtype=np.float32)
    return images, random.integers(0, 5, count).astype(np.int32)


def oracle(model, images, labels, ids, update, clip=CLIP):
    """Mean over views, clip, sum: one example at a time, clipped with NumPy."""
    variables = [variable.value for variable in model.network.trainable_variables]
    total = [np.zeros(variable.shape, np.float64) for variable in variables]
    key = randomness.fold_in(tf.constant(randomness.derive(11, "views")), update)
    for image, label, identity in zip(images, labels, ids, strict=True):
        made, soft = model.views.one_example(
            tf.constant(image), tf.one_hot(label, 5), randomness.fold_in(key, identity)
        )
        per_view = []
        for view, target in zip(made, soft, strict=True):
            with tf.GradientTape() as tape:
                logits = model.network(view[tf.newaxis])
                loss = keras.losses.categorical_crossentropy(
                    target[tf.newaxis], logits, from_logits=True
                )
            per_view.append([part.numpy() for part in tape.gradient(loss, variables)])
        mean = [np.mean(parts, axis=0) for parts in zip(*per_view, strict=True)]
        norm = np.sqrt(sum(np.sum(np.square(part, dtype=np.float64)) for part in mean))
        for index, part in enumerate(mean):
            total[index] += part * min(1.0, clip / norm)
    return total


def distance(one, other):
    return np.sqrt(
        sum(
            np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
            for a, b in zip(one, other, strict=True)
        )
    )


@pytest.mark.parametrize(
    "build",
    [
        small_convnet,
        small_wide_resnet,
        standardized_wide_resnet,
        partly_frozen_convnet,
    ],
)
def test_the_sum_equals_plain_autograd_one_example_at_a_time(build):
    images, labels = examples(5)
    ids = np.array([3, 14, 15, 92, 65])
    network = build()
    expected = None
    for chunk_size in (1, 2, 3, 8):
        model = model_of(network, chunk_size=chunk_size)
        if expected is None:
            expected = oracle(model, images, labels, ids, update=4)
        total = model.clipped_gradient_sum(images, labels, ids=ids, update=4)
        length = distance(expected, [np.zeros_like(part) for part in expected])
        assert distance(total, expected) <= 1e-5 * length


def test_without_clipping_the_sum_is_that_of_the_views_mean_gradients():
    # Where every gradient is clipped, adding views up would look like averaging them.
    images, labels = examples(3)
    model = model_of(small_convnet(), clip=1e6)
    expected = oracle(model, images, labels, range(3), update=4, clip=1e6)
    total = model.clipped_gradient_sum(images, labels, update=4)
    length = distance(expected, [np.zeros_like(part) for part in expected])
    assert distance(total, expected) <= 1e-5 * length


def test_the_sum_equals_plain_autograd_with_synthetic_views_too():
    images, labels = examples(5)
    ids = np.array([3, 14, 15, 92, 65])
    model = model_of(small_convnet(), dp_mix_diff())
    expected = oracle(model, images, labels, ids, update=4)
    total = model.clipped_gradient_sum(images, labels, ids=ids, update=4)
    length = distance(expected, [np.zeros_like(part) for part in expected])
    assert distance(total, expected) <= 1e-5 * length


@pytest.mark.parametrize("build", [small_convnet, small_wide_resnet])
def test_batches_of_none_and_of_one(build):
    model = model_of(build())
    images, labels = examples(1)
    nothing = model.clipped_gradient_sum(images[:0], labels[:0])
    assert all(np.all(part == 0) for part in map(np.asarray, nothing))
    total = model.clipped_gradient_sum(images, labels, update=0)
    expected = oracle(model, images, labels, [0], update=0)
    assert distance(total, expected) <= 1e-5 * CLIP


@pytest.mark.parametrize("make_views", [None, views.no_augmentation], ids=["K7", "K1"])
def test_the_sum_depends_on_the_chunk_size_by_rounding_alone(make_views):
    images, labels = examples(7)
    images[3] = np.nan  # must not spread to its neighbours in the chunk
    network = small_wide_resnet()
    sums = [
        model_of(
            network, make_views and make_views(), chunk_size=size
        ).clipped_gradient_sum(images, labels)
        for size in (1, 2, 5, 16)
    ]
    length = distance(sums[0], [np.zeros_like(part) for part in sums[0]])
    for other in sums[1:]:
        assert distance(sums[0], other) <= 1e-5 * length


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_xla_gives_the_same_sum_and_compiles_once(chunk_size):
    network = small_convnet()
    plain, compiled = (model_of(network, chunk_size=chunk_size) for _ in range(2))
    compiled.compile(jit_compile=True)
    for count in (6, 3, 0, 1):
        images, labels = examples(count, seed=count)
        expected = plain.clipped_gradient_sum(images, labels)
        total = compiled.clipped_gradient_sum(images, labels)
        assert distance(total, expected) <= 1e-5 * max(count, 1)


def linear_probe():
    """A convnet of which only the last layer is trained."""
    network = small_convnet()
    for layer in network.layers[:-1]:
        layer.trainable = False
    return network


def probe_of_nested_encoder():
    """An encoder with BatchNorm, frozen, as one layer under two dense ones."""
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    encoder.trainable = False
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(6, "relu")(encoder(inputs))
    return keras.Model(inputs, keras.layers.Dense(5)(hidden))


@pytest.mark.parametrize("build", [linear_probe, probe_of_nested_encoder])
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_a_frozen_encoder_is_left_outside_the_tape(build, chunk_size, monkeypatch):
    network = build()
    front, rest = split_frozen_front(network)
    assert front is not None and not front.trainable_variables
    assert len(rest.trainable_variables) == len(network.trainable_variables)
    images, labels = examples(6)
    model = model_of(network, chunk_size=chunk_size)
    assert len(model.variables) == len(
        {id(variable) for variable in model.variables}
    ), "the parts must not be saved again"
    total = model.clipped_gradient_sum(images, labels, update=4)
    expected = oracle(model, images, labels, range(6), update=4)
    length = distance(expected, [np.zeros_like(part) for part in expected])
    assert distance(total, expected) <= 1e-5 * length


def test_networks_without_a_frozen_front_stay_whole():
    frozen_late = small_convnet()
    frozen_late.layers[6].trainable = False
    assert len(frozen_late.trainable_variables) < len(frozen_late.weights)
    for network in (small_convnet(), frozen_late):
        assert split_frozen_front(network) == (None, network)


def test_bfloat16_computes_and_float32_clips():
    images, labels = examples(6)
    network = small_convnet()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        low = small_convnet()
    finally:
        keras.config.set_dtype_policy("float32")
    low.set_weights(network.get_weights())
    assert low.compute_dtype == "bfloat16"
    expected = model_of(network).clipped_gradient_sum(images, labels)
    total = model_of(low).clipped_gradient_sum(images, labels)
    assert all(part.dtype == tf.float32 for part in total)
    # Seven bits of mantissa, against the most that six clipped gradients can sum to.
    assert 1e-6 < distance(total, expected) / (6 * CLIP) <= 0.05
    # One example at the clip norm: bfloat16 arithmetic would miss it by a thousandth.
    alone = model_of(low, clip=1e-3).clipped_gradient_sum(images[:1], labels[:1])
    zero = [np.zeros_like(part) for part in alone]
    assert distance(alone, zero) == pytest.approx(1e-3, rel=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_other_precisions_are_refused(policy):
    keras.config.set_dtype_policy(policy)
    try:
        network = small_convnet()
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(DPMixError, match="mixed_bfloat16"):
        model_of(network)


def test_the_chunk_follows_the_shape_and_is_logged(caplog):
    caplog.set_level("INFO", logger="absl")
    sizes = [
        choose_chunk_size(
            views_per_example=views,
            activations_per_view=activations,
            parameters=parameters,
        )
        for views, activations, parameters in [
            (34, 10_000, 25_000),  # an 8x8 convnet: tiny, vectorised
            (34, 1_800_000, 2_700_000),  # WRN-16-4: looped
            (1, 1_800_000, 2_700_000),  # one view: vectorised
            (1, 15_000_000, 86_000_000),  # a vision transformer: gradients are large
            (16, None, 1_000),
        ]
    ]
    assert sizes == [16, 1, 16, 1, 4]
    model = model_of(small_convnet(), chunk_size=None)
    assert f"Chunks of {model.chunk_size} example" in caplog.text


@pytest.mark.parametrize("make_views", [None, dp_mix_diff], ids=["self", "diff"])
def test_removing_one_example_moves_the_sum_by_at_most_the_clip_norm(make_views):
    random = np.random.default_rng(3)
    model = model_of(small_convnet(), make_views and make_views())
    for trial in range(12):
        images, labels = examples(6, seed=trial)
        ids = random.permutation(100)[:6]
        images *= 10.0 ** random.integers(-3, 12, (6, 1, 1, 1))
        if trial % 3 == 0:
            images[random.integers(6)] = [np.nan, np.inf, -1e38][trial % 9 // 3]
        with_all = model.clipped_gradient_sum(images, labels, ids=ids, update=trial)
        gone = random.integers(6)
        rest = np.arange(6) != gone
        without = model.clipped_gradient_sum(
            images[rest], labels[rest], ids=ids[rest], update=trial
        )
        assert all(np.all(np.isfinite(part)) for part in with_all)
        assert distance(with_all, without) <= CLIP * (1 + 1e-5)


def test_an_ordinary_example_moves_the_sum_by_just_the_clip_norm():
    # Guards the test above: clipping to something smaller would pass it too.
    images, labels = examples(1)
    total = model_of(small_convnet(), clip=1e-3).clipped_gradient_sum(images, labels)
    zero = [np.zeros_like(part) for part in total]
    assert distance(total, zero) == pytest.approx(1e-3, rel=1e-5)


def test_non_finite_examples_are_counted():
    model = model_of(small_convnet())
    images, labels = examples(4)
    images[1] = np.nan
    result = model._clipped_sum_graph(
        tf.constant(images),
        tf.constant(labels),
        tf.range(4, dtype=tf.int64),
        tf.constant(0, tf.int64),
    )
    assert int(result.non_finite) == 1
    assert np.isfinite(result.loss_sum) and np.isfinite(result.norm_sum)
