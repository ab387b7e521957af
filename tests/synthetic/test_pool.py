import io
import json

import numpy as np
import pytest
from PIL import Image

from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool, fill, maintenance, pool
from dpmix_tf.training.config import default_pool

CLASSES = ("cat", "/d/dog house")
SHAPE = (6, 6, 3)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def writer(folder, **changes):
    settings = dict(class_names=CLASSES, image_shape=SHAPE, generator={"name": "test"})
    return pool.PoolWriter(folder, **{**settings, **changes})


@pytest.fixture
def folder(tmp_path):
    """Three images of each of two classes."""
    writing = writer(tmp_path / "pool")
    for label, name in enumerate(CLASSES):
        for seed in (3, 20, 100):
            writing.add(
                name, seed, pixels(1000 * label + seed), {"prompt": f"a {name}"}
            )
    assert writing.finish() == 6
    return tmp_path / "pool"


def test_a_pool_comes_back_as_it_was_written(folder):
    loaded = SyntheticPool.load(folder)
    assert len(loaded) == 6 and loaded.class_names == CLASSES
    np.testing.assert_array_equal(loaded.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(loaded.images[1], pixels(20))
    np.testing.assert_array_equal(loaded.images[5], pixels(1100))
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["images"][0]
    assert entry["prompt"] == "a cat" and entry["seed"] == 3
    assert manifest["generator"] == {"name": "test"}
    # People can look at it.
    assert Image.open(folder / "cat" / "3.png").size == (6, 6)


def test_classes_are_matched_by_name_in_the_data_sets_order(folder):
    loaded = SyntheticPool.load(folder, class_names=CLASSES[::-1])
    np.testing.assert_array_equal(loaded.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(loaded.images[0], pixels(1003))
    with pytest.raises(DPMixError, match=r"missing \['bird'\], unexpected \['cat'\]"):
        SyntheticPool.load(folder, class_names=("bird", CLASSES[1]))


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 6, 1)])
def test_another_size_or_grey_for_colour_is_refused(folder, shape):
    with pytest.raises(DPMixError, match="6x6 RGB images"):
        SyntheticPool.load(folder, image_shape=shape)


def break_truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def break_garbage(path):
    path.write_text("not a png")


def break_other_size(path):
    Image.new("RGB", (7, 6)).save(path)


def break_other_pixels(path):
    Image.new("RGB", (6, 6)).save(path)


@pytest.mark.parametrize(
    "damage", [break_truncate, break_garbage, break_other_size, break_other_pixels]
)
def test_damage_names_the_file_and_repair_removes_it(folder, damage):
    path = folder / "cat" / "20.png"
    damage(path)
    with pytest.raises(DPMixError, match="20.png.*--repair"):
        SyntheticPool.load(folder)
    assert maintenance.repair(folder) == ["cat/20.png"]
    assert len(SyntheticPool.load(folder)) == 5


def test_a_manifest_out_of_step_with_the_files_is_refused(folder):
    (folder / "cat" / "3.png").rename(folder / "cat" / "4.png")
    with pytest.raises(DPMixError, match=r"missing \['cat/3.png'\], not listed") as e:
        SyntheticPool.load(folder)
    assert "cat/4.png" in str(e.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema_version": 99}', "\x00", '{"schema_version": 1}'],
)
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DPMixError, match="manifest"):
        SyntheticPool.load(folder)


def test_leftovers_of_a_killed_writer_do_no_harm(folder):
    (folder / "cat" / ".3.png.abc.tmp").write_bytes(b"half")
    assert len(SyntheticPool.load(folder)) == 6


def test_a_lost_manifest_is_gathered_again(folder):
    digest = SyntheticPool.load(folder).digest
    (folder / "manifest.json").unlink()
    writer(folder).finish()
    assert SyntheticPool.load(folder).digest == digest


def test_a_manifest_cannot_reach_outside_the_pool(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["images"][0]["file"] = "../../etc/passwd"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DPMixError):
        SyntheticPool.load(folder)


def test_no_pool_and_empty_classes_are_refused(folder, tmp_path):
    with pytest.raises(DPMixError, match="not a pool"):
        SyntheticPool.load(tmp_path / "nowhere")
    for path in (folder / "cat").iterdir():
        path.unlink()
    writer(folder).finish()
    with pytest.raises(DPMixError, match="'cat' of .* has no images"):
        SyntheticPool.load(folder)


def test_a_pool_of_other_settings_is_not_written_over(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(DPMixError, match="generator: .*'test'.* there"):
        writer(folder, generator={"name": "other"})
    with pytest.raises(DPMixError, match="image_shape"):
        writer(folder, image_shape=(8, 8, 3))
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_images_of_the_wrong_form_are_not_written(folder):
    with pytest.raises(DPMixError, match="uint8 images of shape"):
        writer(folder).add("cat", 5, np.zeros((7, 6, 3), np.uint8), {})
    assert not (folder / "cat" / "5.png").exists()


def test_shards_merge_into_what_one_run_would_have_made(tmp_path):
    settings = default_pool().to_dict() | {"images_per_class": 5}
    digits, shape = tuple("0123456789"), (8, 8, 1)
    fill.generate(tmp_path / "whole", settings, digits, shape)
    shards = [tmp_path / f"shard{part}" for part in (1, 2, 3)]
    for part, shard in enumerate(shards, start=1):
        fill.generate(shard, settings, digits, shape, part, 3)
    sizes = [len(pool.read_manifest(shard)["images"]) for shard in shards]
    assert sum(sizes) == 50 and max(sizes) - min(sizes) <= 1
    maintenance.merge(shards, tmp_path / "merged")
    whole, merged = (SyntheticPool.load(tmp_path / x) for x in ("whole", "merged"))
    assert whole.digest == merged.digest
    (tmp_path / "clash" / "0").mkdir(parents=True)
    maintenance.merge(shards, tmp_path / "clash")
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    (shards[0] / "0" / "0.png").write_bytes(buffer.getvalue())
    with pytest.raises(DPMixError, match="clash"):
        maintenance.merge(shards, tmp_path / "clash")


def test_generating_again_makes_only_what_is_missing(tmp_path):
    settings = default_pool().to_dict() | {"images_per_class": 3}
    arguments = (tmp_path, settings, ("0", "1"), (8, 8, 1))
    fill.generate(*arguments)
    before = SyntheticPool.load(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    (tmp_path / "1" / "2.png").unlink()
    fill.generate(*arguments)
    assert SyntheticPool.load(tmp_path).digest == before.digest
    changed = [p for p, t in times.items() if p.stat().st_mtime_ns != t]
    assert changed == [tmp_path / "1" / "2.png"]
    more = settings | {"images_per_class": 4}
    fill.generate(tmp_path, more, ("0", "1"), (8, 8, 1))
    assert len(SyntheticPool.load(tmp_path)) == 8


def test_ones_own_images_are_imported_with_their_origin(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        Image.new("RGB", (50, 30), "red").save(tmp_path / "mine" / name / "x.jpg")
    target = tmp_path / "pool"
    for _ in range(2):  # importing again adds nothing twice
        fill.import_folder(target, tmp_path / "mine", ("a", "b"), (8, 8, 3))
    assert len(SyntheticPool.load(target)) == 2
    entry = pool.read_manifest(target)["images"][0]
    assert entry["source"] == "a/x.jpg" and len(entry["source_sha256"]) == 64
    with pytest.raises(DPMixError, match=r"missing \['c'\]"):
        fill.import_folder(target, tmp_path / "mine", ("a", "b", "c"), (8, 8, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": "gan"}, "pool.generator must be one of"),
        ({"images_per_class": 0}, "images_per_class must be"),
    ],
)
def test_settings_that_make_no_pool_are_refused(tmp_path, change, words):
    settings = default_pool().to_dict() | change
    with pytest.raises(DPMixError, match=words):
        fill.generate(tmp_path / "pool", settings, ("0", "1"), (8, 8, 1))
    assert not (tmp_path / "pool").exists()


def test_glyphs_draw_digits_only_and_repeat_themselves():
    from dpmix_tf.synthetic.glyphs import glyph

    with pytest.raises(DPMixError, match="digits 0 to 9"):
        glyph("cat", 0, (8, 8, 1))
    one = glyph("7", 5, (8, 8, 1))
    np.testing.assert_array_equal(one, glyph("7", 5, (8, 8, 1)))
    assert np.any(one != glyph("7", 6, (8, 8, 1)))
    assert one.max() > 150 and one.min() < 60


def test_glyphs_look_like_the_digits_they_stand_for(digits):
    """A nearest-neighbour reader of real digits reads glyphs well above chance."""
    from sklearn.neighbors import KNeighborsClassifier

    from dpmix_tf.synthetic.glyphs import glyph

    images, labels = digits.train.read(np.arange(len(digits.train)))
    reader = KNeighborsClassifier(5).fit(images.reshape(len(images), -1), labels)
    drawn = np.stack(
        [glyph(str(d), s, (8, 8, 1)) for d in range(10) for s in range(20)]
    )
    read = reader.predict(drawn.reshape(200, -1))
    assert np.mean(read == np.repeat(np.arange(10), 20)) > 0.3
