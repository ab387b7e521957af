"""A run, and data that is no longer what it was trained on."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dpmix_tf import auditing
from dpmix_tf.data import load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import Trainer, restore_network
from dpmix_tf.training.restore import restore_data
from tests.training.test_trainer import small_config


def fill(folder, *, invert=False):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            image = random.integers(0, 256, (8, 8, 3), np.uint8)
            # All of the same size, whatever they show.
            Image.fromarray(255 - image if invert else image).save(
                folder / name / f"{index}.bmp"
            )
    return folder


def config_for(folder):
    config = small_config(updates=2)
    config.data.update(name="image_folder", data_dir=str(folder), image_size=8)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of images and the workdir of a run on them."""
    folder = fill(tmp_path_factory.mktemp("data") / "photos")
    workdir = tmp_path_factory.mktemp("run")
    Trainer(config_for(folder), workdir).run()
    return folder, workdir


@pytest.fixture
def photos(trained, tmp_path):
    """A copy of the images, which may be changed."""
    return shutil.copytree(trained[0], tmp_path / "moved")


def test_a_moved_folder_is_the_same_data(trained, photos):
    _, metadata = restore_network(trained[1])
    dataset = restore_data(trained[1], metadata, data_dir=str(photos))
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 80
    auditing.attack_membership(trained[1], data_dir=str(photos))


def test_images_replaced_by_others_of_the_same_size_are_noticed(trained, tmp_path):
    other = fill(tmp_path / "other", invert=True)
    _, metadata = restore_network(trained[1])
    with pytest.raises(DPMixError, match="not what the model was trained on"):
        restore_data(trained[1], metadata, data_dir=str(other))
    with pytest.raises(DPMixError, match="not what the model was trained on"):
        auditing.attack_membership(trained[1], data_dir=str(other))
    with pytest.raises(DPMixError, match="training data has changed"):
        Trainer(config_for(other), trained[1])


def test_no_image_that_was_trained_on_is_tested_on_once_photos_are_added(
    trained, photos
):
    """A few at a time; one that falls among the training examples is noticed."""
    _, metadata = restore_network(trained[1])
    before = restore_data(trained[1], metadata)
    learned_from = {*before.train.names(), *before.validation.names()}
    refused = 0
    for index in range(10):
        shutil.copy(photos / "cat" / "0.bmp", photos / "cat" / f"00 new {index}.bmp")
        try:
            after = restore_data(trained[1], metadata, data_dir=str(photos))
        except DPMixError as error:
            assert "not what the model was trained on" in str(error)
            refused += 1
        else:
            assert not learned_from & {*after.test.names()}
    assert refused


def test_what_was_found_is_said_when_a_run_begins_and_not_when_it_goes_on(
    trained, tmp_path, capsys
):
    trainer = Trainer(config_for(trained[0]), tmp_path / "fresh")
    train = len(trainer.dataset.train)
    assert f"training: {train} images in 2 classes (cat:" in capsys.readouterr().err
    for path in (tmp_path / "fresh").rglob("*"):
        assert path.is_dir() or b"images in 2 classes" not in path.read_bytes()
    Trainer(config_for(trained[0]), trained[1])
    assert "images in 2 classes" not in capsys.readouterr().err


def test_nothing_is_begun_on_one_class(tmp_path):
    folder = fill(tmp_path / "photos")
    shutil.rmtree(folder / "dog")
    with pytest.raises(DPMixError, match="one class only, 'cat'"):
        Trainer(config_for(folder), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_classes_lost_by_the_cut_are_noticed_before_training(tmp_path):
    folder = fill(tmp_path / "photos")
    parts = load_dataset("image_folder", data_dir=str(folder), image_size=8)
    for name in parts.train.names():
        if name.startswith("dog/"):
            (folder / name).unlink()
    with pytest.raises(DPMixError, match="no training images of dog"):
        Trainer(config_for(folder), tmp_path / "run")
