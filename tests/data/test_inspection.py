"""What is said of the data before training, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from dpmix_tf.data import ArraySource, Dataset, inspection, load_dataset
from dpmix_tf.errors import DPMixError


def dataset(images, labels, names=("cat", "dog")):
    source = ArraySource(images, labels, names)
    return Dataset(train=source, validation=None, test=source)


def images(count=8):
    random = np.random.default_rng(0)
    return random.integers(5, 250, (count, 4, 4, 1), dtype=np.uint8)


def test_the_findings_say_what_was_found(tmp_path):
    random = np.random.default_rng(0)
    for part, names in (("train", ("cat", "dog")), ("test", ("cat",))):
        for name in names:
            for index in range(5):
                size = (20, 10) if index else (300, 200)
                path = tmp_path / part / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = random.integers(3, 201, (*size[::-1], 3), np.uint8)
                Image.fromarray(image).save(path)
    (tmp_path / "train" / "dog" / "x.heic").touch()
    loaded = load_dataset(
        "image_folder", data_dir=str(tmp_path), image_size=8, validation_fraction=0.0
    )
    text = "\n".join(inspection.inspect(loaded).lines())
    assert "training: 10 images in 2 classes (cat: 5, dog: 5)" in text
    assert "test: 5 images in 2 classes (cat: 5, dog: 0); none of dog" in text
    assert "sizes: 20x10 in 8 of 10, from 20x10 to 300x200; resized to 8x8" in text
    assert "values: uint8 from" in text
    assert "skipped: 1 .heic files" in text


def test_of_many_classes_the_smallest_and_largest_are_named():
    labels = np.repeat(np.arange(30), np.arange(1, 31))
    many = dataset(images(len(labels)), labels, [f"c{i}" for i in range(30)])
    text = "\n".join(inspection.inspect(many).lines())
    assert "fewest c0: 1, c1: 2, c2: 3; most c29: 30, c28: 29, c27: 28" in text


def test_digits_are_found_as_they_are(digits):
    text = "\n".join(inspection.inspect(digits).lines())
    assert "training: 1,294 images in 10 classes" in text
    assert "sizes: 8x8; read as 8x8, 1 channel(s)" in text
    assert "values: uint8 from 0 to 255 in 100 training images" in text


def test_floats_out_of_the_usual_range_are_mentioned():
    pixels = images().astype(np.float32)
    text = "\n".join(inspection.inspect(dataset(pixels, np.arange(8) % 2)).lines())
    assert "floats are used as they are" in text


@pytest.mark.parametrize(
    ("pixels", "labels", "names", "words"),
    [
        (images(), np.zeros(8, int), ["cat"], "one class only, 'cat'"),
        (images(), np.zeros(8, int), ["cat", "dog"], "no training images of dog"),
        (0 * images(), np.arange(8) % 2, ["cat", "dog"], "images are 0"),
        (images() * np.float32("nan"), np.arange(8) % 2, ["cat", "dog"], "not finite"),
    ],
    ids=["one class", "an empty class", "one value", "NaN"],
)
def test_what_cannot_be_learned_is_refused(pixels, labels, names, words):
    with pytest.raises(DPMixError, match=words):
        inspection.inspect(dataset(pixels, labels, names))


def test_findings_go_to_a_screen_and_into_no_file(digits, tmp_path):
    screen = io.StringIO()
    inspection.show(digits, screen)
    assert "1,294 images" in screen.getvalue()
    with open(tmp_path / "log.txt", "w") as log:
        inspection.show(digits, log)
    assert "only shown on a screen" in (tmp_path / "log.txt").read_text()
    assert "1,294" not in (tmp_path / "log.txt").read_text()
