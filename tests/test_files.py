import ast
import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import (
    local_path,
    lock_file,
    write_atomic,
    write_folder_atomic,
    write_text_atomic,
)
from tests.conftest import ROOT


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_home_folder(home):
    assert local_path("~/runs/x") == home / "runs/x"
    assert local_path(Path("~/runs/x")) == home / "runs/x"
    assert local_path("runs/~x") == Path("runs/~x")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("gs://bucket/run", "remote address"),
        (Path("gs://bucket/run"), "remote address"),
        ("s3://bucket/run", "remote address"),
        ("hdfs://node/run", "remote address"),
        ("https://host/weights.h5", "remote address"),
        ("~nobody_of_this_name/x", "does not exist"),
        ("", "must be a file or folder path"),
        (" ", "must be a file or folder path"),
        ("a\0b", "must be a file or folder path"),
        (None, "must be a file or folder path"),
        (3, "must be a file or folder path"),
        (b"runs", "must be a file or folder path"),
    ],
)
def test_what_is_not_a_local_path_is_refused_by_its_name(value, words):
    with pytest.raises(DPMixError, match=rf"^The output .*{words}"):
        local_path(value, "The output")


@pytest.mark.parametrize("value", ["runs/x", "./~x", "./gs:/x", "~/x", "/a b/c'd"])
def test_a_path_may_come_through_the_door_twice(value, home):
    once = local_path(value)
    assert local_path(once) == once
    assert not value.startswith("./") or once == Path.cwd() / value


def test_every_path_comes_in_by_one_door():
    """Elsewhere Path(...) is made of what dpmix_tf itself knows, never of a value."""
    known = {
        "__file__",
        "record.pathname",
        "matplotlib.get_data_path()",
        "given.partition(':')[0]",  # of a local_path
        "place",  # of os.walk
        "path",  # of the same
        "'/proc/driver/nvidia/version'",
    }
    for module in (ROOT / "dpmix_tf").rglob("*.py"):
        if module.name == "files.py":
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Path":
                assert ast.unparse(node.args[0]) in known, f"{module}:{node.lineno}"


def test_files_are_written_below_the_home_folder(home):
    write_text_atomic("~/page.txt", "words")
    assert (home / "page.txt").read_text() == "words"


def test_a_lock_is_held_once_and_given_back(tmp_path):
    with lock_file(tmp_path / ".lock", wait=False), pytest.raises(BlockingIOError):
        lock_file(tmp_path / ".lock", wait=False)
    lock_file(tmp_path / ".lock", wait=True).close()


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP]
)
@pytest.mark.parametrize("wait", [True, False])
def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch, number, wait):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DPMixError, match="no file locks .*another disk"):
        lock_file(tmp_path / ".lock", wait=wait)


def test_locks_are_taken_in_one_place():
    users = [
        path.name
        for path in (ROOT / "dpmix_tf").rglob("*.py")
        if "fcntl" in path.read_text()
    ]
    assert users == ["files.py"]


@pytest.fixture
def failing_fsync(monkeypatch):
    """Makes fsync fail on folders alone, or on everything."""

    def fail(number, *, folders_only):
        fsync = os.fsync

        def failing(handle):
            if folders_only and not stat.S_ISDIR(os.fstat(handle).st_mode):
                return fsync(handle)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", failing)

    return fail


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP]
)
@pytest.mark.parametrize("folders_only", [True, False])
def test_a_disk_that_cannot_sync_is_written_to(
    tmp_path, failing_fsync, number, folders_only
):
    failing_fsync(number, folders_only=folders_only)
    write_text_atomic(tmp_path / "a", "words")
    write_folder_atomic(tmp_path / "b", lambda path: (path / "c").write_text("more"))
    assert (tmp_path / "a").read_text() == "words"
    assert (tmp_path / "b" / "c").read_text() == "more"


def test_a_disk_that_fails_is_reported_and_the_old_file_stays(tmp_path, failing_fsync):
    (tmp_path / "a").write_text("old")
    failing_fsync(errno.EIO, folders_only=False)
    with pytest.raises(DPMixError, match="Cannot write .*a: Input/output error"):
        write_atomic(tmp_path / "a", lambda file: file.write(b"new"))
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_fails_to_sync_is_reported(tmp_path, failing_fsync):
    failing_fsync(errno.EIO, folders_only=True)
    with pytest.raises(DPMixError, match="Input/output error"):
        write_text_atomic(tmp_path / "a", "new")
    with pytest.raises(DPMixError, match="Input/output error"):
        write_folder_atomic(tmp_path / "b", lambda path: None)
