"""Views that are encoded once: the same training, and caches that never mix."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import DPMixModel, ahead, default_config, encoding
from dpmix_tf.training.encoding import encode_source, encode_views
from dpmix_tf.views import FeatureStore, Layout
from dpmix_tf.views import store as stores
from tests.conftest import ROOT, plan_for


def network_of(seed=0, filters=6, classes=10):
    """A frozen convolution, and a trained dense layer."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    frozen = keras.layers.Conv2D(filters, 3, strides=2, activation="relu")
    frozen.trainable = False
    values = keras.layers.Flatten()(frozen(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes)(values))


def maker_of(**more):
    return views.dp_mix_self(base=3, mixed=2, padding=1, **{"visits": 2} | more)


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """Each test begins without opened stores."""
    monkeypatch.setattr(encoding, "_opened", {})


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(stores, "_BLOCK_BYTES", 40_000)


def trained(network, made, source, updates=4):
    plan = plan_for(len(source), batch=20, updates=updates, clip=0.1)
    model = DPMixModel(network, plan=plan, views=made, seed=3)
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(PoissonBatches(source, plan, seed=4), verbose=0)
    return [np.asarray(v) for v in model.network.trainable_variables]


MAKERS = {
    "self": {},
    "one visit": {"visits": 1},
    "cutmix": {"mixer": "cutmix"},
    "only mixed": {"only_mixed": True},
    "labels only": {"labels_only": True},
}


@pytest.mark.parametrize("kind", [*MAKERS, "plain", "diff"])
def test_training_is_the_same_with_and_without_a_cache(kind, source, tmp_path):
    maker = views.ViewMaker(visits=1) if kind == "plain" else None
    if kind == "diff":
        images, labels = source.arrays()
        order = np.argsort(labels[:50], kind="stable")
        pool = SyntheticPool(
            images=255 - images[:50][order],
            labels=labels[:50][order],
            class_names=source.class_names,
            digest="",
        )
        maker = maker_of(synthetic=2, pool=pool)
    maker = maker or maker_of(**MAKERS.get(kind, {}))
    expected = trained(network_of(), maker, source)
    for dtype, tolerance in (("float32", 1e-5), ("float16", 2e-3)):
        encoded = encode_views(
            network_of(), maker, source, cache_dir=tmp_path, dtype=dtype
        )
        found = trained(network_of(), encoded, source)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=tolerance)


def test_an_update_draws_one_of_an_examples_fixed_visits(source):
    """Not new views, whatever the secret seed: the same few for all updates."""
    maker = maker_of(visits=3, seed=7)
    images, labels = source.read(np.arange(2))
    seen = set()
    for update in range(40):
        seed = np.array([5, update])
        records = maker.records(
            images, keras.ops.one_hot(labels, 10), np.arange(2), seed=seed,
            expected_batch_size=2.0,
        )  # fmt: skip
        made, _ = records.make_views(*records.tensors)
        seen |= {(row, np.asarray(made[row]).tobytes()) for row in range(2)}
    assert len(seen) == 2 * 3


def test_one_example_moves_the_sum_of_encoded_views_by_the_clip_norm(source, tmp_path):
    encoded = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    plan = plan_for(len(source), clip=0.05)
    model = DPMixModel(network_of(), plan=plan, views=encoded, seed=1)
    random, largest = np.random.default_rng(0), 0.0
    for update in range(5):
        ids = np.sort(random.choice(len(source), 6, replace=False))

        def clipped(ids, update=update):
            images, labels = source.read(ids)
            return model.clipped_gradient_sum(images, labels, ids=ids, update=update)

        whole = clipped(ids)
        for left_out in range(6):
            fewer = clipped(np.delete(ids, left_out))
            parts = zip(whole, fewer, strict=True)
            moved = sum(np.sum(np.square(a - b, dtype=np.float64)) for a, b in parts)
            largest = max(largest, float(np.sqrt(moved)))
    assert 0.95 * 0.05 <= largest <= 0.05 * (1 + 1e-5)


def test_other_examples_are_refused(source, tmp_path):
    encoded = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    images, labels = source.arrays()
    trained(network_of(), encoded, ArraySource(images, labels))  # equal ones are not
    images = images.copy()
    images[3, 0, 0, 0] += 1
    with pytest.raises(DPMixError, match="other examples"):
        trained(network_of(), encoded, ArraySource(images, labels))


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*/block-*.bin"))}


def test_files_are_private_and_hold_no_image(source, tmp_path):
    encoded = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path / "c")
    folder = encoded.store.folder
    assert folder.stat().st_mode & 0o077 == 0
    assert all(p.stat().st_mode & 0o077 == 0 for p in folder.glob("block-*"))


def test_only_what_is_missing_or_damaged_is_made_again(
    source, tmp_path, small_blocks, monkeypatch
):
    def encoded():
        return encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)

    store = encoded().store
    whole = content(tmp_path)
    assert len(whole) == store.layout.blocks > 4
    made = []
    write = FeatureStore.write

    def noted(self, block, *parts):
        made.append(block)
        write(self, block, *parts)

    monkeypatch.setattr(FeatureStore, "write", noted)
    encoded()
    assert not made
    flipped = bytearray(store.path(1).read_bytes())
    flipped[1000] ^= 1
    store.path(1).write_bytes(flipped)
    store.path(2).write_bytes(store.path(2).read_bytes()[:-5])
    store.path(3).unlink()
    (store.path(3).parent / ".block-000003.bin.x.tmp").write_bytes(b"half")
    store.path(0).write_bytes(store.path(4).read_bytes())  # another block's
    encoded()
    assert made == [0, 1, 2, 3]
    assert content(tmp_path) == whole
    assert not list(store.folder.glob(".*.tmp"))


def test_shards_together_make_what_one_machine_makes(source, tmp_path, small_blocks):
    for index in (2, 1):
        encode_views(
            network_of(), maker_of(), source, cache_dir=tmp_path / "a",
            shard=(index, 2),
        )  # fmt: skip
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b") != {}


def folder_of(source, cache_dir, *, maker=None, network=None, dtype="float16"):
    encoded = encode_views(
        network or network_of(),
        maker or maker_of(),
        source,
        cache_dir=cache_dir,
        dtype=dtype,
    )
    return encoded.store.folder.name


def test_anything_that_changes_a_feature_has_a_cache_of_its_own(source, tmp_path):
    images, labels = source.read(np.arange(30))
    source = ArraySource(images, labels)
    other = images.copy()
    other[29, 7, 7, 0] ^= 1
    changed = network_of()
    kernel = changed.layers[1].kernel
    kernel.assign(np.nextafter(np.asarray(kernel), 9))
    folders = [
        folder_of(source, tmp_path),
        folder_of(source, tmp_path, dtype="float32"),
        folder_of(source, tmp_path, network=changed),
        folder_of(source, tmp_path, network=network_of(filters=7)),
        folder_of(source.subset(np.arange(29)), tmp_path),
        folder_of(source.subset(np.arange(29, -1, -1)), tmp_path),
        folder_of(ArraySource(other, labels), tmp_path),
        folder_of(ArraySource(images, 9 - labels), tmp_path),
    ]
    for name, value in {
        "base": 4, "mixed": 3, "visits": 3, "seed": 1, "alpha": 0.3, "padding": 2,
        "augment": "crop", "mixer": "cutmix", "only_mixed": True, "labels_only": True,
    }.items():  # fmt: skip
        maker = dataclasses.replace(maker_of(), **{name: value})
        folders.append(folder_of(source, tmp_path, maker=maker))
    assert len(set(folders)) == len(folders)
    assert folder_of(source, tmp_path) == folders[0]  # and names do not matter


keys = st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=3)


@settings(max_examples=50, deadline=None)
@given(keys, keys)
def test_no_feature_is_read_under_another_key(tmp_path_factory, key, other):
    cache = tmp_path_factory.mktemp("stores")
    layout = Layout(rows=4, views=(1, 2), features=(3,), dtype="float32", classes=5)
    first, second = (FeatureStore(cache, each, layout) for each in (key, other))
    parts = (np.ones((4, 1, 2, 3)), np.zeros((4, 1, 2, 2)), np.ones((4, 1, 2, 2)))
    first.write(0, *parts)
    assert (first.folder == second.folder) == (key == other)
    assert second.missing() == ([] if key == other else [0])
    # Nor where somebody copies a block from one folder to the other.
    second.path(0).write_bytes(first.path(0).read_bytes())
    assert second.missing() == ([] if key == other else [0])


def test_features_of_changed_code_are_made_again(source, tmp_path, monkeypatch):
    """What a developer changes between two versions is in no key."""
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    before = content(tmp_path)
    several = views.ViewMaker.several

    def inverted(self, images, *arguments):
        return several(self, 255 - images, *arguments)

    monkeypatch.setattr(views.ViewMaker, "several", inverted)
    encoding._opened.clear()  # code changes between processes
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    assert content(tmp_path).keys() == before.keys()
    assert content(tmp_path) != before


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    source, tmp_path, monkeypatch
):
    class Usage:
        free = 1000

    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DPMixError, match=r"need .* GB .* are free"):
        encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    assert not content(tmp_path)


def test_features_beyond_float16_are_refused(source, tmp_path):
    network = network_of()
    kernel = network.layers[1].kernel
    kernel.assign(1e6 * np.asarray(kernel))
    with pytest.raises(DPMixError, match="float16 cannot hold"):
        encode_views(network, maker_of(), source, cache_dir=tmp_path)
    encode_views(network, maker_of(), source, cache_dir=tmp_path, dtype="float32")


def test_what_cannot_be_encoded_says_why(source, tmp_path):
    with pytest.raises(DPMixError, match=r"visits"):
        encode_views(network_of(), maker_of(visits=None), source, cache_dir=tmp_path)
    whole = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    with pytest.raises(DPMixError, match="frozen"):
        encode_views(whole, maker_of(), source, cache_dir=tmp_path)
    with pytest.raises(DPMixError, match="cache_dtype"):
        encode_views(network_of(), maker_of(), source, cache_dir=tmp_path, dtype="int8")


def test_a_saved_model_makes_its_views_anew(source, tmp_path):
    encoded = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path / "c")
    plan = plan_for(len(source))
    model = DPMixModel(network_of(), plan=plan, views=encoded)
    model.compile()
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert loaded.views == maker_of()


def test_a_source_is_encoded_for_evaluation(source, tmp_path):
    network = network_of()
    features = encode_source(network, source, cache_dir=tmp_path, dtype="float32")
    read, labels = features.read(np.arange(20))
    images, expected = source.read(np.arange(20))
    np.testing.assert_array_equal(labels, expected)
    rest = keras.Model(network.layers[-1].input, network.output)
    np.testing.assert_allclose(
        rest(read), network(images.astype(np.float32) / 255), atol=1e-5
    )


KILLED = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from dpmix_tf.data import ArraySource, load_dataset
from dpmix_tf.views import store
from tests.training.test_encoding import encode_views, maker_of, network_of
store._BLOCK_BYTES = 40_000
source = ArraySource(*load_dataset("digits").train.read(np.arange(200)))
print("starts", flush=True)
encode_views(network_of(), maker_of(), source, cache_dir=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_byte_equal(source, tmp_path, small_blocks):
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path / "whole")
    script = KILLED.format(root=str(ROOT))
    random = np.random.default_rng(0)
    for _ in range(3):
        started = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "killed")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        started.stdout.readline()
        time.sleep(random.uniform(0, 3))
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_store_is_found_by_its_folder_alone(source, tmp_path):
    encoded = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    folder = encoded.store.folder
    assert FeatureStore.opened(folder).missing() == []
    known = json.loads((folder / "key.json").read_text())
    known["key"]["data"] = "0"
    (folder / "key.json").write_text(json.dumps(known))
    with pytest.raises(DPMixError, match="named like another"):
        FeatureStore.opened(folder)
    (folder / "key.json").write_text("{")
    with pytest.raises(DPMixError, match="does not hold encoded views"):
        FeatureStore.opened(folder)


def test_shards_are_made_at_the_same_time_and_the_whole_waits_for_them(tmp_path):
    layout = Layout(rows=4, views=(1, 2), features=(3,), dtype="float32", classes=5)
    ends = []

    def whole():
        with FeatureStore(tmp_path, {}, layout).lock():
            ends.append("whole")

    with FeatureStore(tmp_path, {}, layout).lock((1, 2)):
        with FeatureStore(tmp_path, {}, layout).lock((2, 2)):
            thread = threading.Thread(target=whole)
            thread.start()
            with pytest.raises(DPMixError, match="is encoding views"):
                stores.delete_store(FeatureStore(tmp_path, {}, layout).folder)
        time.sleep(0.2)
        ends.append("shards")
    thread.join()
    assert ends == ["shards", "whole"]


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_a_shard_is_one_of_those_there_are(shard, source, tmp_path):
    with pytest.raises(DPMixError, match="1 <= i <= n"):
        encode_views(network_of(), maker_of(), source, cache_dir=tmp_path, shard=shard)


def test_a_process_reads_and_tries_a_store_once(source, tmp_path, monkeypatch):
    asked = []
    content, foreign = FeatureStore._content, encoding._is_foreign

    def noted(self, block):
        asked.append(block)
        return content(self, block)

    monkeypatch.setattr(FeatureStore, "_content", noted)
    monkeypatch.setattr(
        encoding, "_is_foreign", lambda *more: asked.append("tried") or foreign(*more)
    )
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    store = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path).store
    assert asked == [0, 0]  # it is absent; then made and read
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    assert asked == [0, 0]
    encoding._opened.clear()
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    assert asked == [0, 0, 0, "tried"]
    # What others do to its files is seen all the same.
    whole = store.path(0).read_bytes()
    store.path(0).write_bytes(whole[:-1])
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    assert store.path(0).read_bytes() == whole
    shutil.rmtree(store.folder)
    encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    assert store.path(0).read_bytes() == whole


def test_labels_that_are_no_class_are_refused_before_training(source, tmp_path):
    class Mistaken(ArraySource):
        def read(self, indices):
            images, labels = super().read(indices)
            return images, labels + np.int32(10) * (np.asarray(indices) == 150)

    with pytest.raises(tf.errors.OpError, match="gave labels from 0 to 1"):
        encode_views(
            network_of(), maker_of(), Mistaken(*source.arrays()), cache_dir=tmp_path
        )


def test_a_renamed_copy_does_not_harm_the_store_it_was_copied_from(source, tmp_path):
    encoded = encode_views(network_of(), maker_of(), source, cache_dir=tmp_path)
    copy = shutil.copytree(encoded.store.folder, tmp_path / ("0" * 16))
    with pytest.raises(DPMixError, match="named like another"):
        FeatureStore.opened(copy)
    assert encoded.store.path(0).exists()


def test_random_frozen_layers_cannot_be_encoded_ahead(tmp_path, monkeypatch):
    config = default_config()
    config.views.visits = 1
    monkeypatch.setattr(ahead, "build_new_network", lambda c, d, seed: network_of(seed))
    with pytest.raises(DPMixError, match="by its own secret seed"):
        ahead.encode_ahead(config, tmp_path)
    config.seed = 3
    assert set(ahead.encode_ahead(config, tmp_path)) == {
        "training", "validation", "test",
    }  # fmt: skip
