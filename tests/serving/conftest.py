"""A small trained run, and its SavedModel."""

import pytest

from dpmix_tf.data import load_dataset
from dpmix_tf.serving.export import export_saved_model
from dpmix_tf.training import Trainer, default_config


def small_config():
    config = default_config()
    config.data.name = "digits"
    config.network = {"name": "convnet", "widths": (8,), "groups": 4}
    config.views.base, config.views.mixed = 2, 1
    config.views.augment = "affine"
    config.privacy.epsilon = 8.0
    config.privacy.updates = 6
    config.privacy.expected_batch_size = 32
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("trained")
    Trainer(small_config(), workdir).run()
    return workdir


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """models/digits/1."""
    return export_saved_model(trained, tmp_path_factory.mktemp("models") / "digits")


@pytest.fixture(scope="session")
def images():
    """uint8 [5,8,8,1], of the test set."""
    return load_dataset("digits").test.read(range(5))[0]
