"""The network on features that need no data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import DPMixModel, views
from dpmix_tf.data import ArraySource
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import (
    constants_digest,
    scattering_network,
    split_frozen_front,
    validate_network,
)
from dpmix_tf.models.measured import clear_constants, leaf_images
from dpmix_tf.training import default_config
from dpmix_tf.training.build import pin_weights
from tests.conftest import plan_for


@pytest.fixture(autouse=True)
def few_leaves(monkeypatch):
    """Measuring on a tenth of the images is as good a test."""
    clear_constants()
    monkeypatch.setattr("dpmix_tf.models.measured._IMAGES", 300)
    monkeypatch.setattr("dpmix_tf.models.measured._FEWEST", 100)
    yield
    clear_constants()


def network(shape=(16, 16, 3), **changes):
    settings = dict(input_shape=shape, num_classes=4, filters=8, **changes)
    return scattering_network(**settings)


@pytest.mark.parametrize("features", ["scattering", "patches", "scattering+patches"])
@pytest.mark.parametrize("head", ["linear", "two_layer", "convolutional"])
def test_the_head_alone_is_trained_and_starts_at_zero(features, head):
    made = network(features=features, head=head)
    validate_network(made)
    front, rest = split_frozen_front(made)
    assert front.variables and not front.trainable_variables
    assert len(rest.trainable_variables) == len(made.trainable_variables)
    leaves = leaf_images((16, 16, 3), 0).astype(np.float32) / 255
    assert np.all(made(leaves[:3]) == 0)
    norms = np.linalg.norm(np.asarray(front(leaves)).reshape(300, -1), axis=1)
    assert np.sqrt(np.mean(norms**2)) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((28, 28, 1), 2), ((32, 32, 3), 3), ((16, 24, 5), 2), ((8, 8, 1), 2)],
)
def test_images_of_any_size_and_number_of_channels(shape, scales):
    made = network(shape, scales=scales)
    validate_network(made)
    front, _ = split_frozen_front(made)
    features = np.asarray(front(np.random.default_rng(0).random((3, *shape))))
    assert features.shape[0] == 3 and np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 64, 3), (96, 96, 3)])
def test_large_images(shape):
    test_images_of_any_size_and_number_of_channels(shape, 2)


@pytest.mark.parametrize("features", ["scattering", "patches", "scattering+patches"])
def test_features_of_all_kinds_are_as_long_as_is_asked_for(features):
    front, _ = split_frozen_front(network(features=features, norm=3.0))
    images = leaf_images((16, 16, 3), 0).astype(np.float32) / 255
    norms = np.linalg.norm(front(images), axis=1)
    assert np.sqrt(np.mean(norms**2)) == pytest.approx(3.0, rel=0.02)


def test_normalised_features_are_at_most_so_long():
    """Groups that hardly vary are not made as loud as the rest."""
    front, _ = split_frozen_front(network(features="group_norm", norm=3.0))
    images = leaf_images((16, 16, 3), 0).astype(np.float32) / 255
    norms = np.linalg.norm(front(images), axis=1)
    assert norms.max() <= 3.0 and np.median(norms) > 1.5


def test_the_digest_says_what_makes_the_constants():
    found = constants_digest(features="patches", filters=8, seed=1)
    assert found == constants_digest(features="patches", filters=8, seed=1, scales=3)
    others = [
        constants_digest(features="patches", filters=9, seed=1),
        constants_digest(features="patches", filters=8, seed=2),
        constants_digest(features="patches", filters=8, seed=1, norm=1.0),
        constants_digest(features="scattering", filters=8, seed=1),
        constants_digest(filters=8, seed=1),
    ]
    assert len({found, *others}) == 6
    assert constants_digest(features="group_norm", seed=1) is None
    network(features="patches", seed=1, constants=found)
    with pytest.raises(DPMixError, match="constants are to be"):
        network(features="patches", seed=2, constants=found)
    with pytest.raises(DPMixError, match="constants are to be"):
        network(features="group_norm", constants=found)


def test_a_run_records_the_digest():
    config = default_config()
    config.network = {"name": "scattering", "features": "patches", "filters": 8}
    pinned = pin_weights(config).network
    assert pinned.constants == constants_digest(features="patches", filters=8)
    assert "constants" not in config.network
    assert pin_weights(pin_weights(config)).network.constants == pinned.constants


def test_a_new_version_of_the_leaves_makes_another_digest(monkeypatch):
    before = constants_digest()
    monkeypatch.setattr("dpmix_tf.models.measured.LEAVES_VERSION", -1)
    assert constants_digest() != before


@pytest.mark.parametrize(
    "wrong",
    [{"features": "fourier"}, {"head": "deep"}, {"norm": 0.0}, {"scales": 5}],
)
def test_unknown_settings_are_refused(wrong):
    with pytest.raises(DPMixError):
        network(**wrong)


def test_one_update_moves_the_head_and_no_constant(tmp_path):
    made = network((8, 8, 1))
    constants = [v.numpy() for v in made.non_trainable_variables]
    random = np.random.default_rng(0)
    images = random.random((32, 8, 8, 1), dtype=np.float32)
    labels = random.integers(4, size=32)
    model = DPMixModel(
        made, plan=plan_for(32, updates=1), views=views.dp_mix_self(base=2, mixed=2)
    )
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    model.fit(ArraySource((255 * images).astype(np.uint8), labels), verbose=0)
    assert model.ledger.updates(model.plan) == 1
    assert np.abs(made.trainable_variables[0]).max() > 0
    for variable, before in zip(made.non_trainable_variables, constants, strict=True):
        np.testing.assert_array_equal(variable, before)
    wanted = made(images).numpy()
    made.save(tmp_path / "x.keras")
    np.testing.assert_array_equal(
        wanted, keras.models.load_model(tmp_path / "x.keras")(images)
    )


def test_views_pass_the_front_outside_the_gradient():
    made = network((8, 8, 1))
    model = DPMixModel(made, plan=plan_for(32), views=views.dp_mix_self())
    assert model.step.front is not None
    assert {v.path for v in model.step.front.variables} == {
        v.path for v in made.non_trainable_variables
    }


def test_litert_and_saved_models_compute_the_same(tmp_path):
    made = network((12, 12, 3), head="convolutional", hidden=(4,))
    for variable in made.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    images = np.random.default_rng(1).random((3, 12, 12, 3), dtype=np.float32)
    wanted = made(images).numpy()
    made.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    served = loaded.serve(images)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(served, wanted, atol=1e-5 * scale)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    runner = interpreter.get_signature_runner()
    (answer,) = runner(**{next(iter(runner.get_input_details())): images}).values()
    np.testing.assert_allclose(answer, wanted, atol=1e-4 * scale)
