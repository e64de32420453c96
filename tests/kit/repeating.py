"""What goes on beside a test, again and again."""

import abc
import contextlib
import threading

from wire import Wire


class Repeating(abc.ABC):
    """Calls `step` without pause on a thread of its own until it is left; what that raises fails the test then.

    With a server each call gets the same connection to it, else None.
    """

    def __init__(self, server=None):
        self.server = server
        self.count = 0
        self.broken = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
        assert self.broken is None, self.broken

    def _run(self):
        try:
            with Wire(self.server.port) if self.server else contextlib.nullcontext() as wire:
                while not self._end.is_set():
                    self.step(wire)
        except BaseException as error:
            self.broken = error

    @abc.abstractmethod
    def step(self, wire):
        """One time."""
