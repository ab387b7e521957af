"""Public encoders under a private head."""

import json
import sys

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.applications import convnext
from keras_cv.models.feature_extractor import CLIPImageEncoder, CLIPTextEncoder

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import embed_texts, encoders, split_frozen_front, validate_network
from dpmix_tf.models.resizing import BicubicResizing
from dpmix_tf.privacy import Ledger
from dpmix_tf.training import DPMixModel
from tests.conftest import ROOT, plan_for

pretrained = sys.modules["dpmix_tf.models.pretrained"]
VOCABULARY = ROOT.parent / "shared" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
CLIP_SIZES = {
    "patch_size": 16,
    "width": 32,
    "num_layers": 3,
    "heads": 2,
    "output_dim": 24,
}
TEXT_SIZES = {
    "transformer_width": 32,
    "transformer_layers": 2,
    "transformer_heads": 2,
    "vocab_size": 49408,
    "embed_dim": 24,
    "context_length": 77,
}


def small_convnext(**settings):
    return convnext.ConvNeXt(
        depths=(1, 1, 1, 3),
        projection_dims=(8, 12, 16, 24),
        name="convnext_small",
        **settings,
    )


# The real classes, with less in them.
SMALL = {
    "clip_vit_b16": encoders.Encoder(
        48, encoders._clip(CLIP_SIZES, "clip-vit-base-patch16")
    ),
    "convnext_base": encoders.Encoder(32, encoders._convnext(small_convnext)),
}


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch):
    for name, encoder in SMALL.items():
        monkeypatch.setitem(encoders.ENCODERS, name, encoder)


def build(encoder, channels=3, **settings):
    return pretrained.pretrained(
        input_shape=(20, 20, channels),
        num_classes=5,
        encoder=str(encoder),
        **{"weights": None} | settings,
    )


def some_images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def own_encoder(size=16, normalization=layers.BatchNormalization):
    """An encoder with what needs care: statistics, dropout, a model inside."""
    inner = keras.Sequential(
        [keras.Input((size, size, 4)), layers.Conv2D(6, 3, name="inner_convolution")]
    )
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = layers.ReLU()(normalization(name="norm")(x))
    x = layers.Dropout(0.5, name="dropout")(inner(x))
    return keras.Model(inputs, layers.Conv2D(8, 3, name="last")(x))


@pytest.fixture
def own_file(tmp_path):
    network = own_encoder()
    network.get_layer("norm").moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    network.save(tmp_path / "own.keras")
    return tmp_path / "own.keras", network


def one_update(network):
    """Trains an update; the weights that it moved."""
    images = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), np.uint8)
    source = ArraySource(images, np.arange(12) % 5, tuple("abcde"))
    plan = plan_for(12)
    model = DPMixModel(
        network, plan=plan, views=views.dp_mix_self(base=2, mixed=1), seed=1
    )
    model.compile(keras.optimizers.SGD(0.1))
    before = [np.asarray(variable) for variable in network.variables]
    model.fit(PoissonBatches(source, plan), steps_per_epoch=1, verbose=0)
    assert model.updates == 1
    return model, [
        variable.path
        for variable, value in zip(network.variables, before, strict=True)
        if not np.array_equal(variable, value)
    ]


@pytest.mark.parametrize("encoder", ["clip_vit_b16", "convnext_base"])
def test_the_real_encoders_train_their_head_alone(encoder, tmp_path):
    network = build(encoder)
    model, moved = one_update(network)
    assert moved == ["logits/kernel", "logits/bias"]
    front, _ = split_frozen_front(network)
    assert front is not None  # outside the tape
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert len(again.network.trainable_variables) == 2
    images = some_images(2, 20, 20, 3)
    np.testing.assert_allclose(again.network(images), network(images), atol=1e-5)
    again.fit(
        PoissonBatches(
            ArraySource(np.zeros((12, 20, 20, 3), np.uint8), np.arange(12) % 5),
            again.plan,
        ),
        steps_per_epoch=1,
        verbose=0,
    )
    assert again.updates == 2


@pytest.mark.parametrize(
    ("encoder", "of_a_block"),
    [("clip_vit_b16", "residual_attention"), ("convnext_base", "block_2")],
)
def test_the_last_blocks_train_and_nothing_before_them(encoder, of_a_block):
    network = build(encoder, trainable="last_blocks", blocks=1)
    front, rest = split_frozen_front(network)
    assert front is not None and not front.trainable_variables
    trained = {variable.path for variable in network.trainable_variables}
    assert len(trained) > 8 and any(of_a_block in path for path in trained)
    two = build(encoder, trainable="last_blocks", blocks=2)
    everything = build(encoder, trainable="all")
    sizes = [len(n.trainable_variables) for n in (network, two, everything)]
    assert sizes == sorted(set(sizes))
    _, moved = one_update(network)
    assert set(moved) <= trained and len(moved) > 4


def test_clips_tower_is_kerascvs():
    network = build("clip_vit_b16", image_size=32)
    tower = CLIPImageEncoder(input_resolution=32, **CLIP_SIZES)
    tower.build((None, 32, 32, 3))
    inner = next(a for a in network.layers if isinstance(a, keras.Model))
    assert len(tower.weights) == len(inner.weights)
    by_name = {w.path.split("/", 1)[1]: w for w in tower.weights}
    assert len(by_name) == len(tower.weights)
    for weight, other in zip(
        sorted(tower.weights, key=order), sorted(inner.weights, key=order), strict=True
    ):
        assert weight.shape == other.shape
        weight.assign(other)
    images = some_images(2, 32, 32, 3)
    mean, std = (np.float32(v) for v in (encoders._CLIP_MEAN, encoders._CLIP_STD))
    np.testing.assert_allclose(
        inner(images), tower((images - mean) / std), rtol=1e-4, atol=1e-5
    )


def order(weight):
    """Blocks are numbered on and on as they are made."""
    path = weight.path.split("/", 1)[1]
    digits = [part for part in path.replace("/", "_").split("_") if part.isdigit()]
    name = "/".join(p.rstrip("0123456789").rstrip("_") for p in path.split("/"))
    return name, [int(d) for d in digits]


@pytest.mark.parametrize("both", [False, True])
def test_clips_weights_come_from_a_file(both, tmp_path):
    tower = CLIPImageEncoder(input_resolution=48, **CLIP_SIZES)
    tower.build((None, 48, 48, 3))
    path = tmp_path / "clip.weights.h5"
    (encoders.ClipWeights(image_encoder=tower) if both else tower).save_weights(path)
    with h5py.File(path) as file:
        assert ("image_encoder" in file) == both
    digest = pretrained.weights_digest("clip_vit_b16", str(path))
    network = build("clip_vit_b16", weights=str(path), sha256=digest)
    inner = next(a for a in network.layers if isinstance(a, keras.Model))
    images = some_images(1, 48, 48, 3)
    mean, std = (np.float32(v) for v in (encoders._CLIP_MEAN, encoders._CLIP_STD))
    np.testing.assert_allclose(
        inner(images), tower((images - mean) / std), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(DPMixError, match="another file"):
        build("clip_vit_b16", weights=str(path), sha256="0" * 64)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DPMixError, match="clip.weights.h5"):
        build("clip_vit_b16", weights=str(path))


def test_convnexts_weights_come_from_a_file(tmp_path):
    made = small_convnext(include_top=False, pooling="avg", input_shape=(32, 32, 3))
    path = str(tmp_path / "convnext.weights.h5")
    made.save_weights(path)
    network = build("convnext_base", weights=path)
    inner = next(a for a in network.layers if isinstance(a, keras.Model))
    images = some_images(1, 32, 32, 3)
    np.testing.assert_allclose(inner(images), made(255 * images), rtol=1e-3, atol=1e-4)
    with pytest.raises(DPMixError, match="cannot be given the weights"):
        build("convnext_base", weights=__file__)


def test_an_encoder_of_ones_own_runs_in_inference_mode_below_the_head(own_file):
    path, own = own_file
    network = build(path)
    validate_network(network)
    _, moved = one_update(network)
    assert moved == ["logits/kernel", "logits/bias"]  # and no moving average
    images = some_images(2, 20, 20, 3)
    resized = layers.Resizing(16, 16, interpolation="bicubic")(images)
    features = np.mean(own(resized, training=False), axis=(1, 2))
    features *= 8**0.5 / np.linalg.norm(features, axis=1, keepdims=True)
    head = network.get_layer("logits")
    np.testing.assert_allclose(
        network(images), features @ head.kernel + head.bias, atol=1e-5
    )


def test_what_a_private_gradient_would_reach_in_it_is_refused(own_file, tmp_path):
    path, _ = own_file
    with pytest.raises(DPMixError, match="BatchNormalization"):
        validate_network(build(path, trainable="all"))
    with pytest.raises(DPMixError, match="dropout"):
        validate_network(build(path, trainable="last_blocks", blocks=2))
    network = build(path, trainable="last_blocks", blocks=1)
    validate_network(network)
    _, moved = one_update(network)
    assert moved == ["last/kernel", "last/bias", "logits/kernel", "logits/bias"] or (
        [p.split("/", p.count("/") - 1)[-1] for p in moved]
    ) == ["last/kernel", "last/bias", "logits/kernel", "logits/bias"]


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_an_encoder_that_mixes_examples_is_found_behind_a_head_of_zeros(
    trainable, tmp_path
):
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3)(inputs)
    x = x - keras.ops.mean(x, axis=0, keepdims=True)
    keras.Model(inputs, x).save(tmp_path / "mixing.keras")
    network = build(tmp_path / "mixing.keras", trainable=trainable)
    before = [np.asarray(variable) for variable in network.variables]
    with pytest.raises(DPMixError, match="changes with another image"):
        validate_network(network)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_weights_of_a_layer_around_the_last_block_stay(tmp_path):
    tower = CLIPImageEncoder(input_resolution=32, **CLIP_SIZES)
    tower.build((None, 32, 32, 3))
    block = tower.encoder.resblocks[-1]
    pretrained._freeze_all_but([[block]], tower)
    kept = {id(variable) for variable in block.variables}
    assert {id(variable) for variable in tower.trainable_variables} == kept
    # As a layer that has weights of its own around it.
    tower = CLIPImageEncoder(input_resolution=32, **CLIP_SIZES)
    tower.build((None, 32, 32, 3))
    pretrained._freeze_all_but([[tower.embeddings.conv1]], tower)
    assert [v.path.split("/")[-2:] for v in tower.trainable_variables] == [
        ["patch_embed.embedding", "kernel"]
    ]


def test_encoders_that_are_no_images_to_features_are_refused(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3)(inputs)
    keras.Model(inputs, [x, x]).save(tmp_path / "two.keras")
    with pytest.raises(DPMixError, match="one input and one output"):
        build(tmp_path / "two.keras")
    with pytest.raises(DPMixError, match="no file to check"):
        build("clip_vit_b16", sha256="0" * 64)
    with pytest.raises(DPMixError, match="received: None"):
        pretrained.weights_digest()


def test_a_saved_model_can_be_the_encoder(tmp_path):
    own = own_encoder(24)
    own.export(str(tmp_path / "saved"), verbose=False)
    network = build(tmp_path / "saved", image_size=24)
    assert split_frozen_front(network)[0] is not None
    _, moved = one_update(network)
    assert moved == ["logits/kernel", "logits/bias"]
    images = some_images(1, 24, 24, 3)
    inner = next(a for a in network.layers if isinstance(a, keras.Model))
    features = inner(images)
    np.testing.assert_allclose(features, own(images), atol=1e-5)
    with pytest.raises(DPMixError, match="give network.image_size"):
        build(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DPMixError, match="is not a SavedModel"):
        build(tmp_path / "empty", image_size=24)


@pytest.mark.parametrize("exported", ["file", "folder"])
def test_an_encoder_with_a_privacy_card_is_not_free(exported, own_file, tmp_path):
    spent = Ledger.planned(plan_for(100, updates=7))
    path, encoder = own_file
    card, settings = path.with_name("own.keras.privacy_card.json"), {}
    if exported == "folder":
        path, settings = tmp_path / "saved", {"image_size": 16}
        encoder.export(path, verbose=False)
        card = path / "assets.extra" / "privacy_card.json"
        card.parent.mkdir()
    card.write_text(json.dumps({"privacy": {"ledger": spent.to_list()}}))
    network = build(path, **settings)
    assert Ledger.of(network.variables).by_plan() == spent.by_plan()
    card.write_text("{}")
    with pytest.raises(DPMixError, match="does not say what was spent"):
        build(path, **settings)


def test_grey_images_fit_an_encoder_of_colours():
    network = build("clip_vit_b16", channels=1)
    grey = some_images(2, 20, 20, 1)
    colour = build("clip_vit_b16")
    for weight, other in zip(colour.weights, network.weights, strict=True):
        weight.assign(other)
    colour.get_layer("logits").kernel.assign(np.eye(24, 5))
    network.get_layer("logits").kernel.assign(np.eye(24, 5))
    np.testing.assert_allclose(
        network(grey), colour(np.repeat(grey, 3, -1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trainable": "some"}, "head, last_blocks, all"),
        ({"trainable": "last_blocks", "blocks": 4}, "from 1 to 3"),
        ({"encoder": "resnet"}, "clip_vit_b16"),
        ({"encoder": __file__}, "cannot be loaded"),
        ({"text_embeddings": __file__}, "does not hold an array"),
        ({"weights": "nowhere.h5"}, "nowhere.h5"),
        ({"channels": 2}, "2"),
    ],
)
def test_what_does_not_fit_is_refused(settings, words):
    with pytest.raises(DPMixError, match=words):
        build(**{"encoder": "clip_vit_b16"} | settings)


def test_without_a_network_the_way_out_is_named(monkeypatch):
    import kagglehub

    def no_network(*arguments):
        raise OSError("no route")

    monkeypatch.setattr(kagglehub, "model_download", no_network)
    with pytest.raises(DPMixError, match="--config.network.weights=PATH"):
        build("clip_vit_b16", weights="preset")


def test_texts_start_the_head_as_the_zero_shot_classifier(tmp_path):
    texts = np.random.default_rng(0).normal(size=(5, 24))
    np.save(tmp_path / "texts.npy", texts)
    network = build("clip_vit_b16", text_embeddings=str(tmp_path / "texts.npy"))
    inner = next(a for a in network.layers if isinstance(a, keras.Model))
    images = some_images(3, 48, 48, 3)
    features = np.asarray(inner(images))
    cosines = features @ texts.T
    cosines /= np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(texts, axis=1)
    direct = keras.Model(
        inner.input,
        network.layers[-1](
            layers.Rescaling(24**0.5)(layers.UnitNormalization()(inner.output))
        ),
    )
    np.testing.assert_allclose(direct(images), 100 * cosines, rtol=1e-3, atol=1e-3)
    np.save(tmp_path / "texts.npy", texts[:3])
    with pytest.raises(DPMixError, match="one embedding per class"):
        build("clip_vit_b16", text_embeddings=str(tmp_path / "texts.npy"))


@pytest.mark.skipif(not VOCABULARY.exists(), reason="needs CLIP's vocabulary")
def test_texts_are_embedded_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("dpmix_tf.models.texts._TEXT_TOWER", TEXT_SIZES)
    tower = CLIPTextEncoder(**TEXT_SIZES)
    tower.build((None, 77))
    path = str(tmp_path / "clip.weights.h5")
    encoders.ClipWeights(text_encoder=tower).save_weights(path)

    def embed(*texts):
        return embed_texts(texts, weights=path, vocabulary=str(VOCABULARY))

    both = embed("a photo of a cat", "a satellite photo of a very wide river")
    assert both.shape == (2, 24) and not np.allclose(both[0], both[1])
    # Neither the other text nor the padding that it brings changes anything.
    np.testing.assert_allclose(both[:1], embed("a photo of a cat"), atol=1e-5)
    with pytest.raises(DPMixError, match="CLIP reads 77"):
        embed("cat " * 100)


@pytest.mark.parametrize("size", [(16, 24), (5, 7)])
def test_bicubic_resizing_is_that_of_keras(size):
    images = np.random.default_rng(0).random((3, 9, 12, 2)).astype(np.float32)
    expected = keras.ops.image.resize(images, size, interpolation="bicubic")
    layer = BicubicResizing(*size)
    np.testing.assert_allclose(layer(images), expected, atol=1e-5)
    assert layer.compute_output_shape(images.shape) == expected.shape
    again = BicubicResizing.from_config(layer.get_config())
    np.testing.assert_array_equal(again(images), layer(images))
