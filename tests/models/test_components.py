import keras
import numpy as np
import pytest
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.components import PrincipalComponents
from dpmix_tf.models.measured import leaf_images
from dpmix_tf.models.pretrained import pretrained
from dpmix_tf.privacy import ledger
from dpmix_tf.synthetic.pool import PoolWriter, SyntheticPool
from dpmix_tf.training import Trainer, default_config, restore_network
from dpmix_tf.training.config import pretrained_network

WIDTH = 12


def some_features(count=50):
    random = np.random.default_rng(0)
    scales = np.linspace(1, 5, WIDTH)
    mixed = random.normal(size=(count, WIDTH)) * scales
    turned = mixed @ np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
    return (turned + 7).astype(np.float32)


def test_components_are_those_of_a_singular_value_decomposition():
    features = some_features()
    layer = PrincipalComponents(3)
    layer.build((None, WIDTH))
    layer.fit(features)
    centred = features - features.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = layer(features).numpy()
    # Each component may point either way.
    np.testing.assert_allclose(np.abs(found), np.abs(left * values)[:, :3], atol=1e-3)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    assert not layer.trainable_variables


@pytest.mark.parametrize("components", [0, 13, 50])
def test_more_components_than_there_are_is_refused(components):
    layer = PrincipalComponents(max(components, 1))
    layer.components = components
    layer.build((None, WIDTH))
    with pytest.raises(DPMixError, match=r"from 1 to 12.*50 public"):
        layer.fit(some_features())
    with pytest.raises(DPMixError, match="from 1 to 4"):
        layer.fit(some_features(5))


@pytest.fixture
def encoder(tmp_path):
    """An own encoder, saved."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(WIDTH, 3, activation="relu", bias_initializer="ones")(inputs)
    network = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    network.save(tmp_path / "encoder.keras")
    return tmp_path / "encoder.keras"


@pytest.fixture
def pool(tmp_path):
    """Random images of digits' names: public, and of the digits' size."""
    random = np.random.default_rng(0)
    writer = PoolWriter(
        tmp_path / "pool",
        class_names=[str(digit) for digit in range(10)],
        image_shape=(8, 8, 1),
        generator={"name": "random"},
    )
    for digit in range(10):
        for number in range(3):
            image = random.integers(0, 256, (8, 8, 1)).astype(np.uint8)
            writer.add(str(digit), number, image, {})
    writer.finish()
    return tmp_path / "pool"


def build(encoder, normalise, **settings):
    return pretrained(
        input_shape=(8, 8, 1),
        num_classes=10,
        encoder=str(encoder),
        normalise=normalise,
        **{"components": 5} | settings,
    )


def test_features_are_centred_projected_and_of_one_length(encoder, pool):
    network = build(encoder, str(pool))
    head_inputs = keras.Model(network.inputs, network.layers[-1].input)
    images = SyntheticPool.load(pool).images.astype(np.float32) / 255
    found = head_inputs(images).numpy()
    features = keras.models.load_model(encoder)(np.repeat(images, 3, axis=3)).numpy()
    centred = features - features.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:5].T
    expected *= 5**0.5 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)


def test_leaves_serve_where_there_is_no_pool(encoder):
    network = build(encoder, "leaves")
    again = build(encoder, "leaves")
    images = leaf_images((8, 8, 1), 0)[:20].astype(np.float32) / 255
    np.testing.assert_array_equal(
        network.get_layer("public_components").basis,
        again.get_layer("public_components").basis,
    )
    assert np.isfinite(network(images)).all()
    plain = build(encoder, "none")
    assert plain.count_params() != network.count_params()


def test_an_encoder_that_trains_cannot_be_measured_before(encoder):
    with pytest.raises(DPMixError, match="trainable must be 'head'"):
        build(encoder, "leaves", trainable="all")


@pytest.fixture
def config(encoder, pool):
    config = default_config()
    config.network = pretrained_network(str(encoder))
    config.network.update(normalise="pool", components=5)
    config.pool.path = str(pool)
    config.views.update(base=1, mixed=0)
    config.privacy.update(epsilon=8.0, delta=1e-4, updates=2, accountant="rdp")
    return config


def test_a_run_keeps_what_was_measured_and_says_that_the_pool_is_public(
    config, pool, tmp_path
):
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    (entry,) = trainer.model.ledger.entries
    assert {ledger.PUBLIC_POOL, ledger.PUBLIC_WEIGHTS} <= entry.conditions
    pool.rename(pool.with_name("gone"))
    network, _ = restore_network(tmp_path / "run", weights="raw")
    images = np.random.default_rng(1).random((5, 8, 8, 1), np.float32)
    expected = trainer.model.network(images)
    np.testing.assert_allclose(network(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("normalise", "path", "words"),
    [
        ("pool", None, r'network.normalise = "pool" needs pool.path'),
        ("pool", "/nowhere", "is not a pool"),
        ("data", "/nowhere", "is not a pool"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_spent(
    config, tmp_path, normalise, path, words
):
    config.network.normalise, config.pool.path = normalise, path
    with pytest.raises(DPMixError, match=words):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run" / "privacy.json").exists()
