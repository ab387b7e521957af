"""What a folder holds: classes, parts, what is skipped, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpmix_tf import images
from dpmix_tf.data import (
    ArraySource,
    ImageFolderSource,
    describe_dataset,
    file_index,
    load_dataset,
    load_left_out,
)
from dpmix_tf.errors import DPMixError
from dpmix_tf.images import image_files


def put(path, value=0):
    """An image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 100, 200)).save(path)


def fill(folder, classes=("cat", "dog"), count=30):
    for label, name in enumerate(classes):
        for index in range(count):
            put(folder / name / f"{index}.png", (7 * index + 40 * label) % 256)
    return folder


def load(folder, **settings):
    return load_dataset("image_folder", data_dir=str(folder), image_size=8, **settings)


def parts_of(dataset):
    """File -> part."""
    return {
        name: part
        for part in ("train", "validation", "test")
        for name in getattr(dataset, part).names()
    }


def test_new_files_move_no_others_to_another_part(tmp_path):
    fill(tmp_path)
    before = parts_of(load(tmp_path, validation_fraction=0.2))
    sizes = [list(before.values()).count(p) for p in ("train", "validation", "test")]
    assert sum(sizes) == 60 and min(sizes) >= 3
    for index in range(8):
        put(tmp_path / "cat" / f"0 new {index}.png")
    (tmp_path / "dog" / "3.png").unlink()
    after = parts_of(load(tmp_path, validation_fraction=0.2))
    assert len(after) == 67
    kept = before.keys() & after.keys()
    assert len(kept) == 59 and all(before[name] == after[name] for name in kept)


def test_the_parts_of_a_folder_are_of_the_sizes_asked_for(tmp_path):
    fill(tmp_path, count=300)
    dataset = load(tmp_path, validation_fraction=0.25)
    assert abs(len(dataset.test) - 120) < 40
    assert abs(len(dataset.validation) - 120) < 40
    some = load(tmp_path, validation_fraction=0.0, train_examples=100)
    assert len(some.train) == 100 and some.validation is None
    assert some.test.names() == dataset.test.names()


def test_what_is_left_out_is_the_rest_of_the_training_part(tmp_path):
    fill(tmp_path)
    whole = load(tmp_path, validation_fraction=0.0)
    for kept in (1, 20, len(whole.train) - 1):
        some = load(tmp_path, validation_fraction=0.0, train_examples=kept)
        left_out = load_left_out(
            "image_folder", data_dir=str(tmp_path), image_size=8, train_examples=kept
        )
        assert sorted(some.train.names() + left_out.names()) == whole.train.names()
    for everything in (len(whole.train), None):
        with pytest.raises(DPMixError, match="All training examples are private"):
            load_left_out(
                "image_folder", data_dir=str(tmp_path), train_examples=everything
            )


def test_parts_that_would_be_empty_are_refused(tmp_path):
    fill(tmp_path, count=1)
    with pytest.raises(DPMixError, match="of 2 images fall into the test part"):
        load(tmp_path)
    fill(tmp_path / "parts" / "train", count=1)
    fill(tmp_path / "parts" / "test", count=1)
    with pytest.raises(DPMixError, match="validation_fraction=0 keeps no"):
        load(tmp_path / "parts")
    assert load(tmp_path / "parts", validation_fraction=0.0).validation is None


@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [("Train", "Test", "val"), ("training", "TESTING", "Valid")],
)
def test_parts_are_known_by_their_common_names_in_any_case(
    tmp_path, train, test, validation
):
    for part, count in ((train, 6), (test, 4), (validation, 3)):
        fill(tmp_path / part, count=count)
    dataset = load(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    sizes = [len(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [12, 6, 8]
    assert load(tmp_path, validation_fraction=0.0).validation is None
    described = describe_dataset("image_folder", data_dir=str(tmp_path))
    assert described[0] == ("cat", "dog")


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "val"), "holds train/ and val/ and no test/"),
        (("Validation", "cat", "dog"), "holds Validation/ and no train/ and test/"),
        (("train", "Train", "test"), "both name its train part"),
        (("train", "test", "cow"), "images in cow beside them"),
    ],
    ids=str,
)
def test_mixtures_of_parts_and_classes_are_refused(tmp_path, folders, words):
    for name in folders:
        fill(tmp_path / name, count=2)
    if len(list(tmp_path.iterdir())) < len(folders):
        pytest.skip("this disk does not tell cases apart")
    with pytest.raises(DPMixError, match=words):
        load(tmp_path)
    with pytest.raises(DPMixError, match=words):
        describe_dataset("image_folder", data_dir=str(tmp_path))


@pytest.mark.parametrize("parents", [("cats-vs-dogs",), ("first", "second")])
def test_a_folder_one_level_too_high_is_refused(tmp_path, parents):
    for name in parents:
        fill(tmp_path / name, count=4)
    with pytest.raises(DPMixError, match="subfolders.*cat, dog"):
        load(tmp_path)


def test_a_folder_one_level_too_low_is_refused(tmp_path):
    fill(tmp_path)
    with pytest.raises(DPMixError, match="30 images itself.*give the folder above"):
        load(tmp_path / "cat")


def test_classes_may_have_subfolders_of_their_own(tmp_path):
    for name, patients in (("benign", ("p1", "p2")), ("malignant", ("p3", "p4"))):
        fill(tmp_path / name, patients, count=9)
    assert load(tmp_path).class_names == ("benign", "malignant")


def test_classes_without_images_are_refused_or_mentioned(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", ("cat",))
    dataset = load(tmp_path)
    assert dataset.test.class_names == ("cat", "dog") and len(dataset.test) == 30
    (tmp_path / "train" / "notes").mkdir()
    (tmp_path / "train" / "notes" / "a.txt").write_text("?")
    with pytest.raises(DPMixError, match="classes without images: notes. Remove"):
        load(tmp_path)


def test_hidden_copies_and_other_files_are_skipped_and_counted(tmp_path):
    fill(tmp_path, count=20)
    for name in (
        ".ipynb_checkpoints/0-checkpoint.png",
        "cat/.ipynb_checkpoints/0-checkpoint.png",
        "__MACOSX/cat/0.png",
        "cat/._0.png",
        "beside.png",
    ):
        put(tmp_path / name)
    for name in ("cat/.DS_Store", "dog/Thumbs.db", "dog/0.heic", "dog/1.HEIC", "a.txt"):
        (tmp_path / name).write_bytes(b"?")
    put(tmp_path.parent / "elsewhere" / "x.png")
    (tmp_path / "cat" / "linked").symlink_to(tmp_path.parent / "elsewhere")
    load(tmp_path)
    dataset = load(tmp_path)  # what the first left there is of no account
    assert len(parts_of(dataset)) == 40
    assert dataset.skipped == {
        "hidden or system folders": 3,
        "hidden or system files": 3,
        ".heic files": 2,
        ".txt files": 1,
        "links to folders": 1,
        "images beside the class folders": 1,
    }
    assert len(image_files(tmp_path / "cat")) == 20


def test_a_linked_class_folder_is_read(tmp_path):
    fill(tmp_path / "kept", count=20)
    (tmp_path / "classes").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).symlink_to(tmp_path / "kept" / name)
    assert len(parts_of(load(tmp_path / "classes"))) == 40


def test_every_format_is_read_in_training(tmp_path):
    fill(tmp_path)
    for suffix in ("webp", "bmp", "gif", "tif", "tiff", "JPG"):
        put(tmp_path / "cat" / f"picture.{suffix}", 250)
    source = ImageFolderSource(tmp_path, (8, 8, 3))
    source.check()
    assert len(source) == 66 and not source.skipped


@pytest.mark.parametrize("name", [b"cat ", b" cat", b"c\nat", b"c\rat", b"c\xffat"])
def test_class_names_that_export_cannot_write_are_refused(tmp_path, name):
    fill(tmp_path)
    os.rename(os.fsencode(tmp_path / "cat"), os.fsencode(tmp_path) + b"/" + name)
    with pytest.raises(DPMixError, match="Rename the class, which .* is the folder"):
        load(tmp_path)


def test_class_names_of_arrays_that_export_cannot_write_are_refused():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(DPMixError, match="'b ' cannot be a line"):
        ArraySource(images, np.arange(2), ["a", "b "])
    names = ArraySource(images, np.arange(2), np.array(["a", "b"])).class_names
    assert names == ("a", "b") and {type(name) for name in names} == {str}


def test_files_that_say_nothing_are_named(tmp_path):
    fill(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DPMixError, match="gone.png .*No such file"):
        load(tmp_path)


def reads(monkeypatch):
    """The files whose bytes are read."""
    seen = []
    original = Path.read_bytes

    def read_bytes(path):
        seen.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return seen


def test_a_second_start_reads_only_what_is_new(tmp_path, monkeypatch):
    fill(tmp_path, count=5)
    monkeypatch.setattr(file_index, "_UNSETTLED", 0)
    seen = reads(monkeypatch)
    first = ImageFolderSource(tmp_path, (8, 8, 3)).fingerprint()
    assert len(seen) == 10
    index = tmp_path / images.INDEX
    assert index.stat().st_mode & 0o777 == 0o600
    assert str(tmp_path) not in index.read_text()
    seen.clear()
    assert ImageFolderSource(tmp_path, (8, 8, 3)).fingerprint() == first
    assert not seen
    changed = tmp_path / "dog" / "2.png"
    before = changed.stat()
    data = bytearray(changed.read_bytes())
    put(changed, 255)
    assert len(data) == before.st_size
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.clear()
    assert ImageFolderSource(tmp_path, (8, 8, 3)).fingerprint() != first
    assert seen == ["2.png"]


def test_files_that_changed_a_moment_ago_are_not_remembered(tmp_path, monkeypatch):
    fill(tmp_path, count=5)
    seen = reads(monkeypatch)
    for _ in range(2):
        ImageFolderSource(tmp_path, (8, 8, 3)).check()
    assert len(seen) == 20


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 1, "files": {"cat/0.png": [1]}}']
)
def test_a_damaged_index_is_made_again(tmp_path, text):
    fill(tmp_path, count=3)
    first = ImageFolderSource(tmp_path, (8, 8, 3)).fingerprint()
    (tmp_path / images.INDEX).write_text(text)
    assert ImageFolderSource(tmp_path, (8, 8, 3)).fingerprint() == first


def test_a_folder_that_cannot_be_written_to_is_read_each_time(tmp_path, monkeypatch):
    fill(tmp_path, count=3)

    def refuse(path, *unused, **settings):
        raise DPMixError(f"Cannot write {path}.")

    monkeypatch.setattr(file_index, "write_atomic", refuse)
    monkeypatch.setattr(file_index, "_UNSETTLED", 0)
    seen = reads(monkeypatch)
    for _ in range(2):
        ImageFolderSource(tmp_path, (8, 8, 3)).check()
    assert len(seen) == 12 and not (tmp_path / images.INDEX).exists()
