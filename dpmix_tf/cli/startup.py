"""Keeps TensorFlow's notices off the screen until something fails."""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_DRIVER = Path("/proc/driver/nvidia/version")


def ours_or_serious(record: logging.LogRecord) -> bool:
    """Whether a log line is ours, or at least a warning from another package."""
    ours = Path(record.pathname).is_relative_to(_PACKAGE)
    return ours or record.levelno >= logging.WARNING or _everything_wanted()


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs, holding back what this writes to stderr.

    At every start, before any setting can stop it, TensorFlow writes a page about the
    processor and about missing GPUs. The page is shown only if the import fails or
    takes the process down (TensorFlow aborts on processors it was not built for), or if
    the machine has an NVIDIA GPU that TensorFlow does not find. Setting
    TF_CPP_MIN_LOG_LEVEL=0 in the environment shows everything immediately.
    """
    if _everything_wanted() or sys.stderr is None or "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    screen = os.dup(2)
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as held:
        # Ctrl-C is meant for this process alone: the watcher never unblocks it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        watcher = os.fork()
        if watcher == 0:
            os.close(writing)
            _show_unless_told(reading, held.fileno(), screen)
        os.close(reading)
        os.dup2(held.fileno(), 2)
        quiet = False
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            import tensorflow as tf

            quiet = bool(tf.config.list_physical_devices("GPU")) or not _has_gpu()
        except KeyboardInterrupt:
            quiet = True
            raise
        finally:
            os.dup2(screen, 2)
            if quiet:
                os.write(writing, b"\0")
            os.close(writing)
            os.waitpid(watcher, 0)
            os.close(screen)


def _show_unless_told(reading: int, held: int, screen: int) -> None:
    """Copies what was held back to the screen, unless a byte says not to; then exits.

    Runs in its own process, which survives when TensorFlow aborts the main one.
    """
    try:
        if not os.read(reading, 1):
            os.lseek(held, 0, os.SEEK_SET)
            while text := os.read(held, 2**16):
                os.write(screen, text)
    finally:
        os._exit(0)


def _everything_wanted() -> bool:
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"


def _has_gpu() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return _DRIVER.exists() and not hidden
