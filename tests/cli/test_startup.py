"""TensorFlow's start, played by a module that writes a line and then does as told."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_START = "from dpmix_tf.cli import startup; startup.start_tensorflow()"
_PLAYED = """
import os, time, types
os.write(2, b"a notice\\n")
gpus = []
config = types.SimpleNamespace(list_physical_devices=lambda kind: gpus)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a TensorFlow that ends in some way, in a process of its own."""

    def begin(ends="", code=_START, **environment):
        (tmp_path / "tensorflow.py").write_text(_PLAYED + ends)
        code += "; import sys, tensorflow; print('up', file=sys.stderr)"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", **environment},
            start_new_session=True,
        )

    return begin


def test_notices_are_not_shown_where_tensorflow_starts(start):
    process = start()
    assert process.communicate()[1] == "up\n" and process.returncode == 0


def test_everything_is_shown_where_it_is_asked_for(start):
    shown = start(TF_CPP_MIN_LOG_LEVEL="0").communicate()[1]
    assert shown == "a notice\nup\n"


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ("raise ImportError('a library is missing')", 1),
        ("os.abort()", -signal.SIGABRT),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os._exit(3)", 3),
    ],
)
def test_notices_are_shown_where_it_does_not(start, ends, status):
    process = start(f"import signal; {ends}")
    shown = process.communicate()[1]
    assert process.returncode == status
    assert "a notice\n" in shown and "up" not in shown.splitlines()


@pytest.mark.parametrize(
    ("gpus", "hidden", "shown"),
    [("[]", "0", "a notice\nup\n"), ("['one']", "0", "up\n"), ("[]", "-1", "up\n")],
)
def test_notices_are_shown_where_a_gpu_is_not_found(start, gpus, hidden, shown):
    driver = "from pathlib import Path; startup._DRIVER = Path('/')"
    code = _START.replace("; ", f"; {driver}; ")
    process = start(f"gpus = {gpus}", code, CUDA_VISIBLE_DEVICES=hidden)
    assert process.communicate()[1] == shown


@pytest.mark.parametrize(
    "arguments", [["evaluate", "--workdir=x"], ["train", "--config=configs/digits.py"]]
)
def test_a_start_that_is_interrupted_ends_with_one_line(start, arguments):
    command = f"import sys; sys.argv[1:] = {arguments[1:]}; sys.argv[0] = 'x.py'; "
    command += f"from dpmix_tf.cli.{arguments[0]} import main; main()"
    process = start("print('begun', flush=True); time.sleep(60)", command)
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1] == "\nInterrupted.\n"
    assert process.returncode == 130


def test_windows_is_refused_in_words():
    code = "import sys; sys.platform = 'win32'; import dpmix_tf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "dpmix_tf runs on Linux and macOS" in done.stderr
