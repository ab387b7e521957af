"""Stopping on a signal: the current update ends, or is abandoned if it is long."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

_GRACE = 3.0  # seconds that an update may take to end after a signal


class StopSignal:
    """Notes SIGINT and SIGTERM while its context lasts; a second signal kills.

    Python handles a signal only when TensorFlow's call returns, which may take hours in
    a long update. The signal's byte in a wakeup pipe, however, reaches another thread
    at once.

    Attributes:
      received: whether there was a signal.
      abandoned: whether the current update was abandoned because of it.
    """

    def __init__(self, abandon: Callable[[], None]):
        self.received = False
        self.abandoned = False
        self._abandon = abandon
        self._left = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1])
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _note(self, number, frame) -> None:
        self.received = True
        self._restore()

    def _watch(self) -> None:
        while not self._left.is_set():
            byte = os.read(self._pipe[0], 1)
            if byte[0] in (signal.SIGINT, signal.SIGTERM) and not self._left.wait(
                _GRACE
            ):
                self.abandoned = True
                self._abandon()
                return

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *unused) -> None:
        self._left.set()
        if not self._before:
            return
        self._restore()
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._pipe[1], b"\0")  # wakes the thread
        self._thread.join()
        for end in self._pipe:
            os.close(end)
