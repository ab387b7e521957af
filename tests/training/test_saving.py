"""model.save and keras.models.load_model, as users of Keras expect them."""

import dataclasses
import itertools
import json
import zipfile

import keras
import numpy as np
import pytest

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import BudgetExhaustedError, DPMixError
from dpmix_tf.models import wide_resnet
from dpmix_tf.privacy.ledger import CHOSEN_SEED, UNCHECKED_SAMPLING
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.synthetic.pool import PoolWriter
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for, tiny_network

SEED = 0x0F1E2D3C_4B5A6978_8796A5B4_C3D2E1F0


@pytest.fixture(scope="module")
def source():
    random = np.random.default_rng(0)
    return ArraySource(
        random.integers(0, 256, (40, 8, 8, 1), np.uint8),
        random.integers(0, 10, 40),
        class_names=[str(label) for label in range(10)],
    )


def trained_model(source, updates=3, network=None, make_views=None, **settings):
    model = DPMixModel(
        network or tiny_network(),
        plan=plan_for(40, updates=6),
        views=make_views
        or views.dp_mix_self(base=2, mixed=1, augment="crop", padding=1),
        **settings,
    )
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    if updates:
        batches = PoissonBatches(source, model.plan)
        model.fit(batches, steps_per_epoch=updates, verbose=0)
    return model


def test_a_saved_model_comes_back_and_goes_on(source, tmp_path):
    model = trained_model(source, seed=SEED, chunk_size=3, ema_decay=0.5)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert type(again) is DPMixModel
    assert again.plan == model.plan and again.views == model.views
    assert again.updates == 3 and again.epsilon == model.epsilon
    assert again.statement() == model.statement()  # the seed was chosen: it stays so
    assert (again.chunk_size, again.average.decay) == (3, 0.5)
    for group, variables in model.state().items():
        for one, other in zip(variables, again.state()[group], strict=True):
            np.testing.assert_array_equal(one, other)
    images, labels = source.read(range(8))
    np.testing.assert_array_equal(model(images), again(images))
    assert again.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"] >= 0
    batches = PoissonBatches(source, again.plan)
    again.fit(batches, steps_per_epoch=3, verbose=0)
    with pytest.raises(BudgetExhaustedError):
        again.fit(batches, steps_per_epoch=1, verbose=0)


def test_the_seed_is_not_saved_and_never_used_again(source, tmp_path):
    model = trained_model(source, seed=SEED)
    model.save(tmp_path / "x.keras")
    loaded = [keras.models.load_model(tmp_path / "x.keras") for _ in range(2)]
    for one, other in itertools.combinations([model, *loaded], 2):
        for first, second in (
            (one.step.mechanism._stream.seed, other.step.mechanism._stream.seed),
            (one.step.view_stream.seed, other.step.view_stream.seed),
        ):
            assert not np.array_equal(first, second)
    derived = [
        np.asarray(stream.seed)
        for stream in (model.step.mechanism._stream, model.step.view_stream)
    ]
    secrets = [half.tobytes() for stream in derived for half in stream]
    secrets += [str(SEED).encode(), f"{SEED:x}".encode()]
    with zipfile.ZipFile(tmp_path / "x.keras") as file:
        data = b"".join(file.read(name) for name in file.namelist())
    assert json.loads(zipfile.ZipFile(tmp_path / "x.keras").read("config.json"))
    assert not any(secret in data for secret in secrets)


def test_the_network_alone_is_an_ordinary_keras_model(source, tmp_path):
    model = trained_model(source)
    model.network.save(tmp_path / "network.keras")
    network = keras.models.load_model(tmp_path / "network.keras")
    images, _ = source.read(range(4))
    np.testing.assert_array_equal(network(images / 255.0), model(images))


def test_layers_of_ours_and_frozen_ones_come_back(source, tmp_path):
    network = wide_resnet(
        depth=10,
        width=1,
        groups=4,
        input_shape=(8, 8, 1),
        num_classes=10,
        weight_standardization=True,
    )
    network.layers[1].trainable = False
    model = trained_model(source, network=network, updates=0)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    images, labels = source.read(range(4))
    np.testing.assert_array_equal(model(images), again(images))
    assert len(again.network.trainable_variables) == len(network.trainable_variables)


def test_an_uncompiled_model_is_saved(tmp_path):
    model = DPMixModel(tiny_network(), plan=plan_for(40), views=views.no_augmentation())
    model.save(tmp_path / "x.keras")
    assert not keras.models.load_model(tmp_path / "x.keras").compiled


def test_the_word_of_a_user_is_not_forgotten(source, tmp_path):
    model = trained_model(source, updates=0)
    model.account.note(UNCHECKED_SAMPLING)
    model.save(tmp_path / "x.keras")
    assert "cannot vouch" in keras.models.load_model(tmp_path / "x.keras").statement()


def test_a_pool_is_found_again_or_missed(source, tmp_path):
    names = source.class_names
    random = np.random.default_rng(1)
    writer = PoolWriter(
        tmp_path / "pool", class_names=names, image_shape=(8, 8, 1), generator={}
    )
    for name in names:
        writer.add(name, 0, random.integers(0, 256, (8, 8, 1), np.uint8), {})
    writer.finish()
    pool = SyntheticPool.load(tmp_path / "pool")
    make_views = views.dp_mix_diff(
        pool=pool, base=1, mixed=1, synthetic=1, augment="none"
    )
    model = trained_model(source, make_views=make_views)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.views.pool.digest == pool.digest
    writer.add(names[0], 1, random.integers(0, 256, (8, 8, 1), np.uint8), {})
    writer.finish()
    with pytest.raises(DPMixError, match="has changed since"):
        keras.models.load_model(tmp_path / "x.keras")
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    with pytest.raises(DPMixError, match="pool"):
        keras.models.load_model(tmp_path / "x.keras")
    in_memory = SyntheticPool(
        images=pool.images, labels=pool.labels, class_names=pool.class_names, digest=""
    )
    model = trained_model(
        source,
        updates=0,
        make_views=views.dp_mix_diff(
            pool=in_memory, base=1, mixed=1, synthetic=1, augment="none"
        ),
    )
    with pytest.raises(DPMixError, match="save model.network alone"):
        model.save(tmp_path / "y.keras")


def test_rewound_weights_do_not_rewind_what_was_spent(source, tmp_path):
    """EarlyStopping and load_weights bring back an older count among the weights."""
    model = trained_model(source, updates=1, seed=SEED)
    model.save_weights(tmp_path / "early.weights.h5")
    batches = PoissonBatches(source, model.plan)
    model.fit(batches, steps_per_epoch=2, verbose=0)
    spent = model.epsilon
    model.load_weights(tmp_path / "early.weights.h5")
    assert model.updates == 3 and model.epsilon == spent
    model.load_weights(tmp_path / "early.weights.h5")
    model.save(tmp_path / "x.keras")
    assert keras.models.load_model(tmp_path / "x.keras").updates == 3
    images, labels = source.read(range(8))
    rising = iter([0.1, 0.2])  # never better than the first

    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["measured"] = next(rising)

    best = keras.callbacks.EarlyStopping(
        "measured", mode="min", restore_best_weights=True, patience=1
    )
    model.fit(
        batches, steps_per_epoch=1, epochs=2, verbose=0, callbacks=[Worse(), best]
    )
    assert model.updates == 5


def test_a_seed_chosen_for_the_sampler_is_told(source):
    model = trained_model(source, updates=0)
    chosen = PoissonBatches(source, model.plan, seed=0)
    model.fit(chosen, steps_per_epoch=1, verbose=0)
    assert "chosen by the user" in model.statement()
    model = trained_model(source, updates=1)
    assert "chosen by the user" not in model.statement()


def test_weights_know_what_they_were_trained_under(tmp_path):
    """Loaded under another plan they cost what both plans cost together."""
    path = tmp_path / "x.weights.h5"

    def model_under(plan):
        return DPMixModel(
            tiny_network(), plan=plan, views=views.no_augmentation(), seed=None
        )

    plan = plan_for(40)
    model = model_under(plan)
    model.account.note(CHOSEN_SEED, UNCHECKED_SAMPLING)
    model.account._next.assign(4)
    model.save_weights(path)
    same = model_under(plan)
    assert not same.ledger.conditions
    same.load_weights(path)
    assert same.ledger.conditions == {CHOSEN_SEED, UNCHECKED_SAMPLING}
    assert same.updates == 4
    other = model_under(dataclasses.replace(plan, noise_multiplier=50.0))
    other.load_weights(path)
    assert other.updates == 0 and other.epsilon == plan.epsilon(4)
    # No way around it: nor one that would leave the count behind.
    for wrong in ({"filepath": path, "skip_mismatch": True}, {"filepath": "legacy.h5"}):
        with pytest.raises(DPMixError, match="takes a whole"):
            other.load_weights(**wrong)
    model.network.save_weights(tmp_path / "network.weights.h5")
    with pytest.raises(ValueError):
        other.load_weights(tmp_path / "network.weights.h5")
    with pytest.raises(DPMixError, match="takes a .keras file"):
        other.save(tmp_path / "legacy.h5")
    assert not (tmp_path / "legacy.h5").exists()
