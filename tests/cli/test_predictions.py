"""Predictions written beside the columns of a table."""

import csv

import pyarrow as pa
import pytest
from pyarrow import parquet

from dpmix_tf.cli import predictions
from dpmix_tf.cli.predictions import write_predictions
from dpmix_tf.errors import DPMixError
from dpmix_tf.serving.client import Answer


def classify(paths):
    """Cats have a c in their file's name; what is called broken is."""
    answers = []
    for path in paths:
        names = ["cat", "dog"] if "c" in path.name else ["dog", "cat"]
        broken = "broken" in path.name
        answer = DPMixError(f"Unreadable: {path.name}") if broken else None
        answers.append(answer or Answer(names, [0.75, 0.25]))
    return answers


def put(path, text):
    path.write_text(text)
    return str(path)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_table_keeps_its_columns_and_gains_the_predictions(tmp_path):
    text = 'id,path,note\n007,c.png,"said ""no"",\nthen yes"\n,broken.png,é\n2,,\n'
    table = put(tmp_path / "in.csv", text)
    output = tmp_path / "out.csv"
    assert write_predictions(classify, ["dog", "cat"], table, str(output)) == (3, 2)
    names, first, second, third = rows_of(output)
    assert names == [
        *("id", "path", "note", "predicted"),
        *("probability_dog", "probability_cat", "error"),
    ]
    assert first[:3] == ["007", "c.png", 'said "no",\nthen yes']
    assert first[3:] == ["cat", "0.250000", "0.750000", ""]
    assert second == ["", "broken.png", "é", "", "", "", "Unreadable: broken.png"]
    assert third == ["2", "", "", "", "", "", "The path is blank."]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_batches_keep_the_order_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "_BATCH", 4)
    names = [("c", "x", "broken")[index % 3] + f"{index}.png" for index in range(18)]
    parquet.write_table(pa.table({"scan": names}), tmp_path / "in.parquet")
    sizes, seen = [], []

    def record(paths):
        sizes.append(len(paths))
        seen.extend(paths)
        return classify(paths)

    output = str(tmp_path / "out.csv")
    known = {"path_column": "scan", "folder": "/scans"}
    table = str(tmp_path / "in.parquet")
    assert write_predictions(record, None, table, output, **known) == (18, 6)
    assert sizes == [4, 4, 4, 4, 2] and str(seen[0]) == "/scans/c0.png"
    header, *rows = rows_of(output)
    assert header[1:] == ["predicted", "probability_cat", "probability_dog", "error"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == ["cat", "dog", ""] * 6


@pytest.mark.parametrize(
    ("text", "how", "words"),
    [
        ("scan\nc.png\n", {}, "no column 'path'; its columns are 'scan'"),
        ("path,predicted\nc.png,x\n", {}, "already has columns named 'predicted'"),
        ("path,probability_cat\nc.png,x\n", {}, "named 'probability_cat'"),
        ("path\n", {}, "holds no rows"),
        ("path\nbroken.png\n", {}, "None of the first 1 images .* Unreadable"),
        ("path\nc.png\n", {"output": "in.csv"}, "--output is the table itself"),
        ("path\nc.png\n", {"output": "nowhere/out.csv"}, "Cannot write .*out.csv"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, text, how, words):
    table = put(tmp_path / "in.csv", text)
    output = str(tmp_path / how.get("output", "out.csv"))
    with pytest.raises(DPMixError, match=words):
        write_predictions(classify, None, table, output)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert (tmp_path / "in.csv").read_text() == text


def test_where_the_classes_are_known_a_table_of_broken_images_is_written(tmp_path):
    table = put(tmp_path / "in.csv", "path\nbroken.png\n")
    output = tmp_path / "out.csv"
    assert write_predictions(classify, ["cat", "dog"], table, str(output)) == (1, 1)
    assert rows_of(output)[1] == ["broken.png", "", "", "", "Unreadable: broken.png"]
