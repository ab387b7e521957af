"""Processes that train an experiment's runs, as the runner sees them."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

WORKER = "dpmix_tf.experiments.worker"
LOG = "log.txt"  # of a run, in its folder
REFUSED = 2  # exit status of a run that failed by an error that a user can act on
SURVIVED = (0, REFUSED)  # after these, the process trains further runs


class Worker:
    """A process that trains one run after the other, see experiments/worker.py.

    Args:
      folder: of the first run, in whose log.txt the process begins to write.
      lock: file descriptor that the process holds as long as it lives.
      environment: of the process, besides this one's.

    Attributes:
      started: number of runs that were handed to it.
    """

    def __init__(self, folder: Path, lock: int, environment: Mapping[str, str]):
        with open(folder / LOG, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | environment,
                pass_fds=(lock,),
                start_new_session=True,  # only the runner passes on Ctrl-C
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._said = b""
        self.started = 0
        self._hand_over(folder)

    def start(self, folder: Path) -> bool:
        """Lets it train another run; False if the process has meanwhile ended."""
        open(folder / LOG, "w").close()
        return self._hand_over(folder)

    def _hand_over(self, folder: Path) -> bool:
        assert self._process.stdin is not None
        self.started += 1
        try:
            self._process.stdin.write(json.dumps(str(folder)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def status(self) -> int | None:
        """The exit status of its run, which may be the process's; None before.

        After a status, it is the next run's.
        """
        ended = self._process.poll()  # before reading, so that nothing said is missed
        assert self._process.stdout is not None
        self._said += self._process.stdout.read() or b""
        line, found, rest = self._said.partition(b"\n")
        if found:
            self._said = rest
            return json.loads(line)[1]
        return ended

    def stop(self) -> None:
        """Asks it to end: a run writes a checkpoint first. `wait` waits for that."""
        self._process.terminate()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # if the signal came too late for its run

    def wait(self) -> None:
        """Waits for the end of the process."""
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
