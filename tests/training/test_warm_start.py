import json

import numpy as np
import pytest

from dpmix_tf.data import load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import network_digest
from dpmix_tf.privacy import ledger
from dpmix_tf.serving.export import export_saved_model
from dpmix_tf.serving.privacy_card import read_card, to_markdown
from dpmix_tf.synthetic.fill import generate
from dpmix_tf.synthetic.pool import PoolWriter, SyntheticPool
from dpmix_tf.training import Trainer, checkpoints, default_config, restore_network
from dpmix_tf.training.build import build_new_network
from dpmix_tf.training.warm_start import pretrain, warm_start
from tests.training.test_trainer import small_config


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Forty glyphs of each digit."""
    folder = tmp_path_factory.mktemp("pool")
    settings = default_config().pool.to_dict() | {"images_per_class": 40}
    generate(folder, settings, [str(digit) for digit in range(10)], (8, 8, 1))
    return folder


def config_for(folder, epochs=3, **changes):
    config = small_config()
    config.pool.path = str(folder)
    config.warm_start.update(epochs=epochs, learning_rate=0.01)
    config.update(changes)
    return config


def accuracy(network, digits):
    images, labels = digits.validation.read(np.arange(len(digits.validation)))
    logits = network.predict(images.astype(np.float32) / 255, verbose=0)
    return np.mean(logits.argmax(1) == labels)


def test_it_learns_from_the_pool_what_holds_for_the_data(pool, digits):
    config = config_for(pool, epochs=10)
    start = warm_start(config, digits, seed=1)
    network = build_new_network(config, digits, 1)
    before = accuracy(network, digits)
    for variable, weight in zip(
        network.trainable_variables, start.weights, strict=True
    ):
        variable.assign(weight)
    assert accuracy(network, digits) > before + 0.2
    assert start.record == {
        "pool": SyntheticPool.load(pool).digest,
        "network": network_digest(network),
    }


def test_no_private_image_is_looked_at(pool, digits, monkeypatch):
    """But to find it in the pool."""
    config = config_for(pool, epochs=1)
    expected = warm_start(config, digits, seed=1)
    read = type(digits.train).read

    def other_images(self, indices):
        images, labels = read(self, indices)
        return 255 - images, labels[::-1]

    monkeypatch.setattr(type(digits.train), "read", other_images)
    found = warm_start(config, digits, seed=1)
    assert found.record == expected.record


def test_the_same_seed_gives_the_same_weights_and_another_others(pool, digits):
    config = config_for(pool, epochs=1)
    one, again, other = (warm_start(config, digits, seed) for seed in (1, 1, 2))
    assert one.record == again.record != other.record
    for weight, same in zip(one.weights, again.weights, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_a_frozen_front_is_not_moved_and_its_features_are_made_once(
    pool, digits, tmp_path
):
    config = config_for(pool, epochs=2)
    config.views.visits = 2
    config.run.cache_dtype = "float32"
    config.network = {"name": "scattering", "features": "group_norm"}
    plain = warm_start(config, digits, seed=1)
    cached = warm_start(config, digits, seed=1, cache_dir=tmp_path)
    (shape,) = {weight.shape for weight in plain.weights if weight.ndim == 2}
    assert shape[1] == 10 and len(plain.weights) == 2  # of the head alone
    for weight, same in zip(plain.weights, cached.weights, strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-4)
    assert [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_run_starts_from_it_says_so_and_resumes(pool, tmp_path, digits):
    config = config_for(pool)
    config.warm_start.epochs = 1
    trainer = Trainer(config, tmp_path / "run")
    start = warm_start(config, digits, trainer._seed)
    for variable, average, weight in zip(
        trainer.model.network.trainable_variables,
        trainer.model.average.averages,
        start.weights,
        strict=True,
    ):
        np.testing.assert_array_equal(variable, weight)
        np.testing.assert_array_equal(average, weight)
    trainer.run()
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text())["statement"]
    assert "starts from weights trained on a pool" in statement
    pool.rename(pool.with_name("gone"))
    try:  # nothing but the first start needs it
        resumed = Trainer(config, tmp_path / "run")
    finally:
        pool.with_name("gone").rename(pool)
    resumed._checkpoint()
    resumed.workdir.close()
    (entry,) = resumed.model.ledger.entries
    assert ledger.WARM_START in entry.conditions
    assert restore_network(tmp_path / "run")[1]["warm_start"] == start.record
    version = export_saved_model(tmp_path / "run", tmp_path / "models", research=True)
    card = read_card(version)
    assert card["warm_start"] == start.record
    assert start.record["pool"] in to_markdown(card)


def test_without_it_the_card_says_none(tmp_path):
    config = small_config(updates=1)
    config.run.test = False
    Trainer(config, tmp_path / "run").run()
    card = read_card(
        export_saved_model(tmp_path / "run", tmp_path / "models", research=True)
    )
    assert card["warm_start"] is None and "pool" not in card["statement"]
    assert "| warm start | none |" in to_markdown(card)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warm_start": {"epochs": -1}}, "epochs of 0 or more"),
        ({"warm_start": {"learning_rate": 0.0}}, "learning_rate above 0"),
        ({"warm_start": {"learning_rate": 1e38}}, "diverged"),
        ({"pool": {"path": None}}, "warm_start.epochs = 3 needs pool.path"),
        ({"pool": {"path": "/nowhere"}}, "is not a pool"),
        ({"views": {"microbatch": 4, "mixed": 0}}, "views.microbatch"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_spent(
    pool, tmp_path, change, words
):
    with pytest.raises(DPMixError, match=words):
        Trainer(config_for(pool, **change), tmp_path / "run")
    assert not (tmp_path / "run" / "privacy.json").exists()


def steal(digits, folder):
    """Makes a pool of private images."""
    images, labels = digits.train.read(np.arange(60))
    writer = PoolWriter(
        folder,
        class_names=digits.class_names,
        image_shape=(8, 8, 1),
        generator={"name": "stolen"},
    )
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        writer.add(digits.class_names[label], index, image, {})
    writer.finish()


def test_a_pool_of_private_images_is_refused(tmp_path):
    steal(load_dataset("digits"), tmp_path / "pool")
    with pytest.raises(DPMixError, match="training images themselves"):
        Trainer(config_for(tmp_path / "pool"), tmp_path / "run")


class Stopped(Exception):
    """As if the process had been killed."""


def test_pretraining_goes_on_where_it_was_stopped_and_training_starts_from_it(
    pool, tmp_path, digits, monkeypatch
):
    config = config_for(pool, epochs=3)
    assert pretrain(config, tmp_path / "whole") > 0.15
    save = checkpoints.save

    def save_two(folder, arrays, metadata):
        if metadata["updates"] == 3:
            raise Stopped
        return save(folder, arrays, metadata)

    monkeypatch.setattr(checkpoints, "save", save_two)
    with pytest.raises(Stopped):
        pretrain(config, tmp_path / "stopped")
    config.warm_start.update(path=str(tmp_path / "stopped"), epochs=0)
    with pytest.raises(DPMixError, match="holds no finished pretraining"):
        warm_start(config, digits, seed=1)
    monkeypatch.undo()
    config.warm_start.update(path=None, epochs=3)
    pretrain(config, tmp_path / "stopped")
    assert pretrain(config, tmp_path / "stopped") is None  # nothing is left to do

    config.warm_start.epochs = 0
    starts = []
    for name in ("whole", "stopped"):
        config.warm_start.path = str(tmp_path / name)
        starts.append(warm_start(config, digits, seed=1))
    assert starts[0].record == starts[1].record
    assert starts[0].record["pool"] == SyntheticPool.load(pool).digest
    for weight, same in zip(starts[0].weights, starts[1].weights, strict=True):
        np.testing.assert_array_equal(weight, same)
    trainer = Trainer(config, tmp_path / "run")
    for variable, weight in zip(
        trainer.model.network.trainable_variables, starts[0].weights, strict=True
    ):
        np.testing.assert_array_equal(variable, weight)
    trainer.run()
    (entry,) = trainer.model.ledger.entries
    assert ledger.WARM_START in entry.conditions


def test_pretraining_reads_no_private_example(pool, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the data set was opened")

    monkeypatch.setattr("dpmix_tf.data.registry._digits", refuse)
    pretrain(config_for(pool, epochs=1), tmp_path)


def test_what_was_pretrained_otherwise_is_refused(pool, tmp_path, digits):
    config = config_for(pool, epochs=1)
    pretrain(config, tmp_path / "start")
    config.warm_start.path = str(tmp_path / "start")
    with pytest.raises(DPMixError, match="Give one of the two"):
        warm_start(config, digits, seed=1)
    config.warm_start.epochs = 0
    widths = config.network.widths
    config.network.widths = (4, 4)
    with pytest.raises(DPMixError, match=r"network.widths: .* \[4, 4\] here"):
        warm_start(config, digits, seed=1)
    config.network.widths = widths
    config.warm_start.path = None
    config.warm_start.update(epochs=1, learning_rate=0.5)
    with pytest.raises(DPMixError, match="was pretrained with .*0.01"):
        pretrain(config, tmp_path / "start")
    frozen = config_for(pool, epochs=1)
    frozen.network = {"name": "scattering", "features": "group_norm"}
    with pytest.raises(DPMixError, match="has a frozen front"):
        pretrain(frozen, tmp_path / "frozen")
    for change, words in (
        ({"pool": {"path": None}}, "needs pool.path"),
        ({"warm_start": {"epochs": 0}}, "epochs of 1 or more"),
    ):
        with pytest.raises(DPMixError, match=words):
            pretrain(config_for(pool, **change), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_pools_and_pools_of_private_images_are_refused(pool, tmp_path, digits):
    config = config_for(pool, epochs=1)
    pretrain(config, tmp_path / "start")
    settings = default_config().pool.to_dict() | {"images_per_class": 2}
    other = tmp_path / "other"
    generate(other, settings, [str(digit) for digit in range(10)], (8, 8, 1))
    config.warm_start.update(path=str(tmp_path / "start"), epochs=0)
    config.pool.path = str(other)
    with pytest.raises(DPMixError, match="pool: .* there, .* here"):
        warm_start(config, digits, seed=1)
    steal(digits, tmp_path / "stolen")
    config.pool.path = str(tmp_path / "stolen")
    config.warm_start.update(path=None, epochs=1)
    pretrain(config, tmp_path / "from_stolen")  # it cannot know
    config.warm_start.update(path=str(tmp_path / "from_stolen"), epochs=0)
    with pytest.raises(DPMixError, match="training images themselves"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run" / "privacy.json").exists()
