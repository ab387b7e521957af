"""Tables of images: what is read, what is cut, and what is refused in which words."""

import json
import os
import re

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv, parquet

from dpmix_tf.data import (
    Columns,
    TableSource,
    describe_dataset,
    file_index,
    inspection,
    load_dataset,
    load_left_out,
    open_table,
    ordered_batches,
    table_checks,
)
from dpmix_tf.data.parts import cut, keep
from dpmix_tf.errors import DPMixError
from dpmix_tf.images import INDEX
from dpmix_tf.training import default_config

SHAPE = (8, 8, 3)
COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images a/00.png to b/23.png, each of another grey."""
    home = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        path = home / path_of(index)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 6), (9 * index,) * 3).save(path)
    return home


def path_of(index):
    return f"{'ab'[index % 2]}/{index:02d}.png"


def columns_of(**more):
    """A valid table; columns given are changed or added, and those of None left out."""
    table = {
        "path": [path_of(index) for index in range(COUNT)],
        "label": [("ill", "healthy")[index % 3 == 0] for index in range(COUNT)],
        "patient": [f"p{index // 3}" for index in range(COUNT)],
        "sex": ["FM"[index % 2] for index in range(COUNT)],
    }
    return {name: cells for name, cells in (table | more).items() if cells is not None}


def write(path, columns):
    table = pa.table(columns)
    (parquet.write_table if path.suffix == ".parquet" else csv.write_csv)(table, path)
    return path


def changed(name, **cells):
    """A column of the valid table with some cells changed: c3="x" is that of row 3."""
    column = list(columns_of()[name])
    for row, cell in cells.items():
        column[int(row[1:])] = cell
    return column


def open_one(folder, tmp_path, suffix=".csv", columns=None, class_names=None, **more):
    path = write(tmp_path / f"table{suffix}", columns_of(**more))
    return open_table(
        path,
        folder=folder,
        columns=columns,
        image_shape=SHAPE,
        class_names=class_names,
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_a_table_gives_its_images_and_labels_in_its_order(folder, tmp_path, suffix):
    path = write(tmp_path / f"table{suffix}", columns_of())
    parts = open_table(path, folder=folder, image_shape=SHAPE)
    (source,) = parts.values()
    assert list(parts) == ["train"] and isinstance(source, TableSource)
    assert source.class_names == ("healthy", "ill") and source.task == "single_label"
    images, labels = source.read(np.array([5, 0, 23]))
    assert images[:, 0, 0, 0].tolist() == [45, 0, 207]
    assert images.shape == (3, *SHAPE) and images.dtype == np.uint8
    assert labels.tolist() == [1, 0, 1] and labels.dtype == np.int32
    assert source.names() == columns_of()["path"] and source.people is None
    assert source.examine().sizes.tolist() == [[10, 6]] * COUNT
    batches = list(ordered_batches(source, 10))
    assert [len(labels) for _, labels in batches] == [10, 10, 4]


def test_paths_are_relative_to_the_table_or_absolute(folder, tmp_path):
    beside = write(folder / "beside.csv", columns_of())
    expected = open_table(beside, image_shape=SHAPE)["train"]
    absolute = [str(folder / path_of(index)) for index in range(COUNT)]
    written = [f"./a/../{path_of(index)}" for index in range(COUNT)]
    for paths in (absolute, written):
        source = open_one(folder, tmp_path, path=paths)["train"]
        assert source.names() == expected.names()
        assert source.fingerprint() == expected.fingerprint()
    elsewhere = open_one(tmp_path, tmp_path, path=absolute)["train"]
    assert elsewhere.names() == absolute
    assert (elsewhere.read([3])[0] == expected.read([3])[0]).all()


def test_integers_are_classes_in_their_order(folder, tmp_path):
    numbers = [11 if index % 2 else 2 for index in range(COUNT)]
    for suffix in (".csv", ".parquet"):
        source = open_one(folder, tmp_path, suffix, label=numbers)["train"]
        assert source.class_names == ("2", "11")
        assert source.read([0, 1])[1].tolist() == [0, 1]


def test_class_names_are_given_as_a_list_or_a_file(folder, tmp_path):
    names = ["unclear", "ill", "healthy"]
    file = tmp_path / "names.json"
    file.write_text(json.dumps(names))
    for given in (names, tuple(names), file, str(file)):
        source = open_one(folder, tmp_path, class_names=given)["train"]
        assert source.class_names == tuple(names)
        assert source.read([0, 1])[1].tolist() == [2, 1]
    numbers = [index % 3 for index in range(COUNT)]
    source = open_one(folder, tmp_path, label=numbers, class_names=file)["train"]
    assert source.read([0, 1, 2])[1].tolist() == [0, 1, 2]


def several(**more):
    cells = ["1", "0", "", "-1", "1.0", "0.0", "-1.0", " 1 "] * (COUNT // 8)
    return columns_of(label=None, edema=cells, fracture=cells[1:] + cells[:1], **more)


def test_several_labels_are_ones_zeros_and_unknown(folder, tmp_path):
    nan = np.nan
    expected = np.array([1, 0, nan, nan, 1, 0, nan, 1])
    columns = Columns(labels=("edema", "fracture"))
    path = write(tmp_path / "table.csv", several())
    source = open_table(path, folder=folder, columns=columns, image_shape=SHAPE)
    source = source["train"]
    assert source.task == "multi_label" and source.class_names == ("edema", "fracture")
    _, labels = source.read(np.arange(8))
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels[:, 0], expected)
    np.testing.assert_array_equal(labels[:7, 1], expected[1:])
    (_, first), *_ = ordered_batches(source, 8)
    np.testing.assert_array_equal(first, labels)
    examined = source.examine(np.array([1, 2, 7]))
    assert examined.labels.dtype == np.int64
    assert examined.labels.tolist() == [[0, -1], [-1, -1], [1, 1]]
    assert source.examine(np.array([], int)).labels.shape == (0, 2)


def test_numbers_and_booleans_of_parquet_are_labels(folder, tmp_path):
    floats = pa.array([1.0, 0.0, None, np.nan] * (COUNT // 4))
    path = write(
        tmp_path / "table.parquet",
        columns_of(edema=floats, mass=pa.array([True, None] * (COUNT // 2))),
    )
    columns = Columns(labels=("edema", "mass"))
    source = open_table(path, folder=folder, columns=columns, image_shape=SHAPE)
    _, labels = source["train"].read(np.arange(4))
    nan = np.nan
    np.testing.assert_array_equal(labels, [[1, 1], [0, nan], [nan, 1], [nan, nan]])


def test_several_labels_are_counted_by_label(folder, tmp_path):
    dataset = load_dataset(
        "table",
        table=str(write(tmp_path / "table.csv", several())),
        data_dir=str(folder),
        label_columns=["edema", "fracture"],
    )
    found = inspection.inspect(dataset)
    assert sum(found.images.values()) == COUNT
    _, known = dataset.train.read(np.arange(len(dataset.train)))
    expected = np.nansum(known, axis=0).astype(int).tolist()
    assert list(found.counts["training"].values()) == expected


def test_one_letter_written_in_two_ways_is_one_label(folder, tmp_path):
    label = ["cafe\u0301" if index % 3 else "caf\u00e9 " for index in range(COUNT)]
    for names in (None, ["caf\u00e9", "tea"], ["cafe\u0301"]):
        source = open_one(folder, tmp_path, label=label, class_names=names)["train"]
        assert not source.read(np.arange(COUNT))[1].any()
        assert len(source.class_names) == len(names or [1])


def test_parts_are_those_of_the_column_split(folder, tmp_path):
    words = ["Train", "TEST", "val", "training"] * (COUNT // 4)
    parts = open_one(folder, tmp_path, split=words)
    assert {part: len(source) for part, source in parts.items()} == {
        "train": 12,
        "validation": 6,
        "test": 6,
    }
    assert parts["test"].names() == columns_of()["path"][1::4]
    named = open_one(folder, tmp_path, part=words, columns=Columns(split="part"))
    assert named["test"].fingerprint() == parts["test"].fingerprint()


def test_what_is_known_of_rows_survives_subsets(folder, tmp_path):
    columns = Columns(person="patient")
    source = open_one(folder, tmp_path, columns=columns)["train"]
    some = source.subset(np.arange(4, 20)).subset([3, 0])
    assert some.people.tolist() == ["p2", "p1"] and some.people.dtype.kind == "U"
    assert some.column("sex").tolist() == ["M", "F"]
    assert some.names() == [path_of(7), path_of(4)]
    assert some.read([1])[0][0, 0, 0, 0] == 36
    with pytest.raises(DPMixError, match="no column 'age'.*'path', 'label', 'patient'"):
        some.column("age")


def test_labels_people_and_paths_are_in_the_fingerprint(folder, tmp_path):
    columns = Columns(person="patient")
    source = open_one(folder, tmp_path, columns=columns)["train"]
    known = {source.fingerprint(), open_one(folder, tmp_path)["train"].fingerprint()}
    person, label = changed("patient", c7="p9"), changed("label", c7="healthy")
    for more in ({"patient": person}, {"label": label}):
        other = open_one(folder, tmp_path, columns=columns, **more)["train"]
        known.add(other.fingerprint())
    assert len(known) == 4
    again = open_one(folder, tmp_path, columns=columns, sex=None)["train"]
    assert again.fingerprint() == source.fingerprint()


def test_parts_share_one_index_of_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(file_index, "_UNSETTLED", 0)
    words = ["train", "test"] * (COUNT // 2)
    for source in open_one(folder, tmp_path, split=words).values():
        source.check()
    known = json.loads((folder / INDEX).read_text())["files"]
    assert known.keys() == set(columns_of()["path"])


def test_a_broken_image_is_named(folder, tmp_path):
    (tmp_path / "broken.png").write_text("?")
    paths = changed("path", c2=str(tmp_path / "broken.png"))
    source = open_one(folder, tmp_path, path=paths)["train"]
    with pytest.raises(DPMixError, match="Unreadable image: .*broken.png"):
        source.check()


def parts_of(dataset):
    return [part for part in (dataset.train, dataset.validation, dataset.test) if part]


class Listed(TableSource):
    """Rows with people, and without files."""

    def __init__(self, people):
        self.people = np.asarray(people)

    def __len__(self):
        return len(self.people)

    def subset(self, indices):
        return Listed(self.people[indices])


# numpy takes null bytes at the end of a name for the end itself.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
PEOPLE = st.lists(NAMES.map(lambda name: name[:2]), min_size=1, max_size=40)


@hypothesis.given(PEOPLE, st.integers(1, 40), st.floats(0.05, 0.95))
@hypothesis.settings(max_examples=200, deadline=None)
def test_no_person_is_ever_in_two_parts(people, count, fraction):
    source = Listed(people)
    for make in (
        lambda: cut(source, fraction, "test"),
        lambda: keep(source, min(count, len(people))),
    ):
        try:
            first, second = make()
        except DPMixError as error:
            assert "people" in str(error)
            continue
        others = second.people.tolist() if second else []
        assert not set(first.people.tolist()) & set(others)
        assert sorted(first.people.tolist() + others) == sorted(people)


def test_new_rows_move_nobody_to_another_part(folder, tmp_path):
    def where(rows):
        table = {name: cells[:rows] for name, cells in columns_of().items()}
        dataset = load_dataset(
            "table",
            table=str(write(tmp_path / "table.csv", table)),
            data_dir=str(folder),
            image_size=8,
            person="patient",
            validation_fraction=0.4,
        )
        return {
            person: part
            for part, source in enumerate(parts_of(dataset))
            for person in source.people.tolist()
        }

    before, after = where(18), where(COUNT)
    assert len(before) == 6 and before.items() <= after.items() and len(after) == 8


def test_people_are_left_out_whole(folder, tmp_path):
    settings = {
        "table": str(write(tmp_path / "table.csv", columns_of())),
        "data_dir": str(folder),
        "person": "patient",
        "train_examples": 3,
    }
    train = load_dataset("table", validation_fraction=0.0, **settings).train
    others = load_left_out("table", **settings)
    assert len(train) == 3 and len(train.examples) == 9
    assert not {*train.people} & {*others.people}
    with pytest.raises(DPMixError, match="the number of people; received: 30"):
        load_left_out("table", **settings | {"train_examples": 30})


def test_a_run_reads_a_table_by_its_settings(folder, tmp_path):
    config = default_config()
    config.data.name = "table"
    config.data.table = str(write(tmp_path / "table.csv", columns_of()))
    config.data.data_dir = str(folder)
    config.data.image_size = 8
    dataset = load_dataset(**config.data.to_dict())
    assert sum(map(len, parts_of(dataset))) == COUNT
    assert dataset.image_shape == SHAPE
    as_json = json.loads(config.to_json())["data"]
    assert len(load_dataset(**as_json).train) == len(dataset.train)
    split = ["train", "test", "val"] * (COUNT // 3)
    write(tmp_path / "table.csv", columns_of(split=split))
    names = tmp_path / "names.json"
    names.write_text('["ill", "healthy"]')
    config.data.class_names = (str(names),)
    dataset = load_dataset(**config.data.to_dict())
    assert [len(part) for part in parts_of(dataset)] == [8, 8, 8]
    assert dataset.class_names == ("ill", "healthy")


def test_a_table_is_described_without_its_images(tmp_path):
    path = str(write(tmp_path / "table.csv", columns_of()))
    found = describe_dataset("table", table=path, image_size=32, channels=1)
    assert found == (("healthy", "ill"), (32, 32, 1))
    for given in ({"class_names": ("b", "a")}, {"label_columns": ("b", "a")}):
        assert describe_dataset("table", **given) == (("b", "a"), (224, 224, 3))
    with pytest.raises(DPMixError, match="set data.table, or data.class_names"):
        describe_dataset("table")


@pytest.mark.parametrize(
    "setting",
    [
        {"person": "patient"},
        {"table": "table.csv"},
        {"label_columns": ("a",)},
        {"label_column": "class"},
        {"split_column": "part"},
        {"class_names": ("a", "b")},
    ],
    ids=str,
)
def test_other_data_sets_refuse_the_settings_of_tables(setting):
    (name,) = setting
    words = f"data.{name} cannot be used with data.name='digits'.*data.name=table"
    for use in (load_dataset, describe_dataset, load_left_out):
        with pytest.raises(DPMixError, match=words):
            use("digits", **setting)
    with pytest.raises(TypeError, match="'nme'"):
        load_dataset("digits", nme="x")
    with pytest.raises(DPMixError, match="needs data.table"):
        load_dataset("table")


def test_a_table_of_one_person_cannot_be_cut(folder, tmp_path):
    path = write(tmp_path / "table.csv", columns_of(patient=["p"] * COUNT))
    with pytest.raises(DPMixError, match="of 1 people fall into the test part"):
        load_dataset("table", table=str(path), data_dir=str(folder), person="patient")


LONG = "x" * 300
HALF = ["train", "test"] * (COUNT // 2)
PERSON = Columns(person="patient")

# What is changed in the valid table, how it is opened, and words of the refusal.
MALFORMED = {
    "no path column": ({"path": None}, {}, "no column 'path'; its columns are 'label'"),
    "no label column": ({"label": None}, {}, "no column 'label'.*'path', 'patient'"),
    "no person column": (
        {},
        {"columns": Columns(person="id")},
        "no column 'id'.*Name the right column",
    ),
    "no split column": ({}, {"columns": Columns(split="part")}, "no column 'part'"),
    "no columns of labels": (
        {},
        {"columns": Columns(labels=("edema", "mass"))},
        "no column 'edema', 'mass'",
    ),
    "blank path": ({"path": changed("path", c3=" ")}, {}, "1 blank cells: rows 4,"),
    "blank label": ({"label": changed("label", c0="")}, {}, "'label'.*blank.*rows 1,"),
    "null label": (
        {"label": changed("label", c5=None, c6=None)},
        {"suffix": ".parquet"},
        "2 blank cells: rows 6, 7,",
    ),
    "nan label": ({"label": changed("label", c4="NaN")}, {}, "a label in each"),
    "blank person": (
        {"patient": changed("patient", c1="\t")},
        {"columns": PERSON},
        "'patient'.*blank.*a person's name",
    ),
    "long person": (
        {"patient": changed("patient", c1=LONG)},
        {"columns": PERSON},
        "name of 300 characters.*Is it the right column",
    ),
    "remote path": (
        {"path": changed("path", c0="gs://bucket/a.png")},
        {},
        "1 paths that are remote addresses: 'gs://bucket/a.png'",
    ),
    "not an image": (
        {"path": changed("path", c0="a/00.dcm", c1="a/notes")},
        {},
        "2 paths that do not end like an image: 'a/00.dcm', 'a/notes'",
    ),
    "missing images": (
        {"path": [f"a/{index}.png" for index in range(COUNT)]},
        {},
        "lists 17 images that are missing: 'a/0.png', 'a/1.png', .* and 12 more",
    ),
    "missing folder": (
        {"path": changed("path", c0="c/00.png")},
        {},
        "1 images that are missing: 'c/00.png'. Paths are relative to",
    ),
    "backslashes": (
        {"path": changed("path", c0="a\\00.png")},
        {},
        "Write / instead of",
    ),
    "null byte": (
        {"path": changed("path", c0="\0/00.png")},
        {"suffix": ".parquet"},
        "images that are missing",
    ),
    "a folder": ({"path": changed("path", c0="a/d.png")}, {}, "missing: 'a/d.png'"),
    "listed twice": (
        {"path": changed("path", c0="b/01.png", c2="./b//01.png")},
        {},
        "1 images that are listed more than once: 'b/01.png'. 2 rows are too many",
    ),
    "other spelling of a label": (
        {"label": changed("label", c0="Ill", c1="Ill")},
        {"class_names": ["ill", "healthy"]},
        "unknown labels in 2 rows: 'Ill' \\(2\\). Expected ill, healthy",
    ),
    "integer out of range": (
        {"label": [index % 3 for index in range(COUNT)]},
        {"class_names": ["ill", "healthy"]},
        "8 rows: '2' \\(8\\). Expected integers from 0 to 1",
    ),
    "negative integer": (
        {"label": [index % 2 - 1 for index in range(COUNT)]},
        {},
        "12 rows: '-1' \\(12\\). Expected integers from 0",
    ),
    "integers beside names": (
        {"label": changed("label", c0="1")},
        {"class_names": ["ill", "healthy"]},
        "'1' \\(1\\)",
    ),
    "a label that export cannot write": (
        {"label": changed("label", c0="il\nl")},
        {},
        "cannot be a line of a text file",
    ),
    "class names that repeat": ({}, {"class_names": ["ill", "ill"]}, "different names"),
    "class names of another kind": ({}, {"class_names": [1, 2]}, "Write them as text"),
    "class names that are missing": (
        {},
        {"class_names": "nowhere.json"},
        "Cannot read class names from nowhere.json",
    ),
    "class names beside columns of labels": (
        {"edema": ["1"] * COUNT},
        {"columns": Columns(labels=("edema",)), "class_names": ["a"]},
        "Leave the class names out",
    ),
    "other marks": (
        {"edema": ["1", "yes", "2"] * (COUNT // 3)},
        {"columns": Columns(labels=("edema",))},
        "'edema'.*holds 'yes', '2' in 16 rows. Expected 1 where",
    ),
    "a column of labels twice": (
        {"edema": ["1"] * COUNT},
        {"columns": Columns(labels=("edema", "edema"))},
        "name a column twice",
    ),
    "lists": (
        {"label": pa.array([["ill"]] * COUNT)},
        {"suffix": ".parquet"},
        "'label'.*holds list<.*cannot be read as text",
    ),
    "unknown part": (
        {"split": ["train", "test", "fold 3"] * (COUNT // 3)},
        {},
        "unknown parts: 'fold 3' \\(8\\). Expected train, training",
    ),
    "blank part": ({"split": [*HALF[:-1], ""]}, {}, "unknown parts: '' \\(1\\)"),
    "no test part": ({"split": ["train", "val"] * 12}, {}, "no test part, only train"),
    "no train part": ({"split": ["test"] * COUNT}, {}, "no train part, only test"),
    "a person in two parts": (
        {"split": HALF},
        {"columns": PERSON},
        "8 of 8 people in .* images in two parts: 'p0', 'p1', .* and 3 more",
    ),
    "a person in two parts, spelled in two ways": (
        {
            "split": ["train"] * 23 + ["test"],
            "patient": changed("patient", c0="Zoe\u0301", c23=" Zo\u00e9"),
        },
        {"columns": PERSON},
        "'Zo\u00e9'",
    ),
    "no rows": ({name: [] for name in columns_of()}, {}, "holds no rows"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_table_is_refused(what, folder, tmp_path):
    (folder / "a" / "d.png").mkdir(exist_ok=True)
    columns, how, words = MALFORMED[what]
    with pytest.raises(DPMixError, match=words) as caught:
        open_one(folder, tmp_path, **how, **columns)
    first = str(caught.value).splitlines()[0]
    assert len(re.findall(r"\. [A-Z]", first)) >= 1, "says nothing of what to do"


FILES = {
    "nowhere.csv": (None, "No such file"),
    "table.xlsx": (b"PK", "ends in .xlsx, expected .csv or .parquet"),
    "table": (b"path,label\n", "ends in no suffix"),
    "empty.csv": (b"", "Empty CSV file"),
    "names.csv": (b"path,label\n", "holds no rows"),
    "latin.csv": ("path,label\na.png,grün\n".encode("latin-1"), "invalid UTF8"),
    "wide.csv": (b"path,label\na.png,1\na.png,1,2\n", "Expected 2 columns, got 3"),
    "quote.csv": (b'path,label\na.png,"1\nb.png,2\n', "mark is not closed"),
    "twice.csv": (b"path,label,path\na.png,1,b.png\n", "columns named 'path'"),
    "semicolons.csv": (b"path;label\na.png;1\n", "its columns are 'path;label'"),
    "text.parquet": (b"path,label\na.png,1\n", "Cannot read the table"),
    "cut.parquet": (b"PAR1", "Cannot read the table"),
    "zip.csv": (b"PK\x03\x04\xff\xfe\0\0", "CSV"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_table_is_refused(name, tmp_path):
    data, words = FILES[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DPMixError, match=words):
        open_table(tmp_path / name, image_shape=SHAPE)


def test_folders_and_addresses_are_no_tables(folder, tmp_path):
    with pytest.raises(DPMixError, match="is a folder.*data.name=image_folder"):
        open_table(folder, image_shape=SHAPE)
    with pytest.raises(DPMixError, match="The table is a remote address"):
        open_table("gs://bucket/table.csv", image_shape=SHAPE)
    path = write(tmp_path / "table.csv", columns_of())
    with pytest.raises(DPMixError, match="does not exist. Set data.data_dir"):
        open_table(path, folder=tmp_path / "nowhere", image_shape=SHAPE)


@st.composite
def corrupted(draw, data):
    """Some bytes of a file replaced, removed or added."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 6))
        data[at : at + gone] = draw(
            st.binary(max_size=3)
            | st.sampled_from([b",", b'"', b"\n", b"\r", b"\0", b"-1", b"../", b" "])
        )
    return bytes(data)


@hypothesis.given(st.data())
@hypothesis.settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_a_corrupted_table_is_read_or_refused(folder, tmp_path, data):
    suffix = data.draw(st.sampled_from([".csv", ".csv", ".parquet"]))
    table = several(split=["train", "test", "val"] * (COUNT // 3))
    path = write(tmp_path / f"table{suffix}", table)
    path.write_bytes(data.draw(corrupted(path.read_bytes())))
    columns = data.draw(
        st.sampled_from(
            [
                Columns(label="sex"),
                Columns(label="sex", person="path"),
                Columns(labels=("edema", "fracture"), person="patient"),
            ]
        )
    )
    try:
        parts = open_table(path, folder=folder, columns=columns, image_shape=SHAPE)
    except DPMixError as error:
        assert str(path) in str(error) or "cannot be a line" in str(error)
        return
    for source in parts.values():
        assert len(source.read(np.arange(min(2, len(source))))[0])
        assert source.examine().labels.min() >= -1
        # Whatever became of the other columns' names, this one was asked for.
        column = columns.person or columns.label
        assert len(source.column(column)) == len(source.names()) == len(source)


def test_each_folder_is_listed_once(folder, tmp_path, monkeypatch):
    seen = []
    original = os.scandir

    def scandir(place):
        seen.append(os.fsdecode(place))
        return original(place)

    monkeypatch.setattr(table_checks.os, "scandir", scandir)
    open_one(folder, tmp_path)
    assert sorted(seen) == [f"{folder}/a/", f"{folder}/b/"]
