"""Whatever a file holds: it is read, or one clear error names it."""

import io
import json
import struct
import zlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from dpmix_tf.data import ImageFolderSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.images import exif_orientation, read_image
from dpmix_tf.synthetic import pool
from dpmix_tf.training import workdir

FILES = hypothesis.settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)

MANIFEST = {
    "schema_version": pool.SCHEMA_VERSION,
    "image_shape": [4, 4, 1],
    "class_names": ["a", "b"],
    "generator": {"name": "test"},
    "images": [
        {"file": "a/0.png", "class_name": "a", "seed": 0, "sha256": "0" * 64},
        {"file": "b/1.png", "class_name": "b", "seed": 1, "sha256": "1" * 64},
    ],
}
PRIVACY = {"epsilon": 1.5, "delta": 1e-5, "updates": 7, "statement": "..."}


@st.composite
def changed(draw, original):
    """`original` as JSON with one value somewhere replaced, or cut, or other bytes."""
    value = json.loads(json.dumps(original))
    place = value
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], (dict, list)) or draw(st.booleans()):
            if isinstance(place, dict) and draw(st.booleans()):
                del place[key]
            else:
                place[key] = draw(JSON)
            break
        place = place[key]
    data = json.dumps(value).encode()
    how = draw(st.sampled_from(["as it is", "cut", "byte"]))
    if how == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if how == "byte":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


@FILES
@hypothesis.given(changed(MANIFEST) | st.binary(max_size=40))
def test_a_manifest_is_read_or_refused(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    try:
        manifest = pool.read_manifest(tmp_path)
    except DPMixError as error:
        assert "manifest" in str(error)
        return
    assert len(manifest["image_shape"]) == 3
    for entry in manifest["images"]:
        assert entry["class_name"] in manifest["class_names"]
    with pytest.raises(DPMixError):  # its images are not there
        if not manifest["images"]:
            raise DPMixError("no images: nothing to load")
        pool.SyntheticPool.load(tmp_path)


@FILES
@hypothesis.given(changed(PRIVACY) | st.binary(max_size=40))
def test_what_is_spent_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    (folder / "privacy.json").write_bytes(data)
    try:
        updates = workdir.spent_updates(folder)
    except DPMixError as error:
        assert "privacy.json" in str(error)
        return
    # Read as nothing spent only where the file says so.
    assert updates == json.loads(data)["updates"] >= 0


@FILES
@hypothesis.given(st.lists(changed({"event": "final", "updates": 3}), max_size=3))
def test_metrics_are_read_or_refused(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    try:
        metrics = workdir.Metrics(folder, keep_until=5)
    except DPMixError as error:
        assert "metrics.jsonl" in str(error)
        return
    assert metrics.final is None or metrics.final["event"] == "final"


def encoded(mode="RGB", size=(20, 10), file_format="PNG", **settings):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, file_format, **settings)
    return buffer.getvalue()


SOUND = {
    "grey.png": encoded("L"),
    "palette.png": encoded("P"),
    "alpha.png": encoded("RGBA"),
    "grey_alpha.png": encoded("LA"),
    "bits.png": encoded("1"),
    "cmyk.jpg": encoded("CMYK", file_format="JPEG"),
    "progressive.jpg": encoded(file_format="JPEG", progressive=True),
    "animated.png": encoded(
        save_all=True, append_images=[Image.new("RGB", (20, 10), "red")]
    ),
    "upper.PNG": encoded(),
    "png_named.jpg": encoded(),
    "picture.webp": encoded(file_format="WEBP"),
    "picture.bmp": encoded(file_format="BMP"),
    "picture.tiff": encoded(file_format="TIFF", compression="tiff_lzw"),
    "moving.gif": encoded(
        "P",
        file_format="GIF",
        save_all=True,
        append_images=[Image.new("P", (20, 10))],
    ),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SOUND)
def test_every_kind_of_sound_image_is_read(tmp_path, name, channels):
    (tmp_path / name).write_bytes(SOUND[name])
    image = read_image(tmp_path / name, (8, 8, channels))
    assert image.shape == (8, 8, channels) and image.dtype == np.uint8
    assert image.std() > 5


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png", (8, 8, 1))
    np.testing.assert_allclose(image[..., 0], deep / 257, atol=1)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I;16", ".png"), ("I;16", ".tif"), ("RGB", ".png")]
)
def test_twelve_bits_in_sixteen_are_refused_and_not_read_as_black(
    tmp_path, mode, suffix
):
    deep = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    for name, values in (("dark", deep), ("bright", deep * 16)):
        path = tmp_path / f"{name}{suffix}"
        if mode == "I;16":
            Image.fromarray(values).save(path)
        else:
            colours = np.stack([values] * 3, -1)
            path.write_bytes(tf.io.encode_png(colours).numpy())
    with pytest.raises(DPMixError, match="dark.*12-bit.*[Ss]tretch it"):
        read_image(tmp_path / f"dark{suffix}", (8, 8, 1))
    image = read_image(tmp_path / f"bright{suffix}", (8, 8, 1))
    np.testing.assert_array_equal(image[..., 0], deep * 16 // 256)


def test_floats_and_whole_numbers_beyond_sixteen_bits_are_refused(tmp_path):
    for values in (np.ones((8, 8), np.float32), np.full((8, 8), 70_000, np.int32)):
        Image.fromarray(values).save(tmp_path / "values.tiff")
        with pytest.raises(DPMixError, match="convert it to 8 bits"):
            read_image(tmp_path / "values.tiff", (8, 8, 1))


def test_images_that_are_too_large_are_to_be_shrunk(tmp_path):
    for size in ((50_000, 50_000), (10_000, 9_000)):
        (tmp_path / "large.png").write_bytes(claiming(*size))
        with pytest.raises(DPMixError, match="80,000,000 pixels. Shrink it"):
            read_image(tmp_path / "large.png", (8, 8, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_says(tmp_path, kind, orientation):
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (4, 6, 3), np.uint8))
    image = small.resize((60, 40), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "turned", kind, exif=exif)
    with Image.open(tmp_path / "turned") as again:
        upright = ImageOps.exif_transpose(again).convert("RGB")
    assert upright.size == ((60, 40) if orientation < 5 else (40, 60))
    read = read_image(tmp_path / "turned", (*upright.size[::-1], 3))
    np.testing.assert_array_equal(read, upright)


@FILES
@hypothesis.given(st.binary(max_size=60), st.sampled_from([b"", b"II*\0", b"MM\0*"]))
def test_damaged_exif_data_leaves_an_image_as_it_is_or_turns_it(tmp_path, data, start):
    assert exif_orientation(start + data) in range(1, 9)
    kept = Image.new("RGB", (20, 10))
    kept.save(tmp_path / "x.jpg", exif=b"Exif\0\0" + start + data)
    assert read_image(tmp_path / "x.jpg", (8, 8, 3)).shape == (8, 8, 3)


def claiming(width, height):
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


BROKEN = {
    "empty.png": b"",
    "text.png": b"not an image",
    "eps.png": encoded(file_format="EPS"),
    "bomb.png": claiming(50_000, 50_000),
    "large.png": claiming(10_000, 9_000),
    "short.png": claiming(20, 20),
    "cut.png": SOUND["grey.png"][:60],
    "cut.jpg": SOUND["progressive.jpg"][:200],
    "header.png": SOUND["grey.png"][:8],
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_kind_of_broken_image_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(DPMixError, match=f"Unreadable image: .*{name}"):
        read_image(tmp_path / name, (8, 8, 3))


@FILES
@hypothesis.given(
    st.sampled_from(sorted(SOUND)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    st.integers(0, 2000),
)
def test_damaged_images_are_read_or_refused(tmp_path, name, changes, length):
    data = bytearray(SOUND[name])
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path / name
    path.write_bytes(bytes(data[: max(1, length)] if length < len(data) else data))
    try:
        assert read_image(path, (8, 8, 3)).shape == (8, 8, 3)
    except DPMixError as error:
        assert name in str(error)


def test_a_folder_with_a_broken_image_names_it(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(SOUND["grey.png"])
    (tmp_path / "b" / "1.png").write_bytes(BROKEN["cut.png"])
    source = ImageFolderSource(tmp_path, (8, 8, 3))
    with pytest.raises(DPMixError, match=r"1\.png"):
        source.read(np.arange(len(source)))
