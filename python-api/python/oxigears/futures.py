"""Futures, hooks and timers: the names exist; what needs events or an event loop is refused clearly."""

import _oxigears
from oxigears.errors import error


def _not_supported(what):
    return error(f"{what} is not supported yet")


class GearsFuture:
    """What `run()` returns: stands for the results of an execution."""

    def __init__(self, execution_id=None):
        self.executionId = execution_id

    def __await__(self):
        raise _not_supported("awaiting an execution")
        yield  # makes this a generator, as the protocol wants


class GearsSession:
    """`with GearsSession(s):` sets the session of this thread for the block, then sets it to None."""

    def __init__(self, s):
        self.s = s

    def __enter__(self):
        _oxigears.setGearsSession(self.s)
        return self

    def __exit__(self, kind, value, traceback):
        _oxigears.setGearsSession(None)


def gearsFuture(*args):
    """A future bound to the record at hand."""
    if args:
        raise error("Future gets no arguments")
    if not _oxigears.isAsyncAllow():
        raise error("Future object can only be created inside certain execution steps")
    raise _not_supported("gearsFuture()")


def createFuture():
    """A future of the shared event loop."""
    raise _not_supported("createFuture()")


def setFutureResults(f, v):
    """Completes a future."""
    raise _not_supported("setFutureResults()")


def setFutureException(f, e):
    """Fails a future."""
    raise _not_supported("setFutureException()")


def runCoroutine(cr, f=None, delay=0, s=None):
    """Schedules a coroutine on the shared event loop."""
    close = getattr(cr, "close", None)
    if close is not None:
        close()
    raise _not_supported("runCoroutine()")
