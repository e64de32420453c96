"""Futures, coroutines and sessions as scripts use them.

A step may return a coroutine or a `gearsFuture()`: then its record comes back later. All coroutines of a shard share
one event loop on a thread of its own.
"""

from asyncio import Future

import _oxigears
from oxigears import event_loop
from oxigears.errors import error, text_of


class GearsFuture(Future):
    """A future of the shared event loop. What `run()` returns gives `[results, errors]` when it is awaited."""

    executionId = None

    def add_done_callback(self, fn, *, context=None):
        """Calls `fn(future)` on the event loop when it is done, with the session and the rights of running code."""
        super().add_done_callback(fn, context=event_loop.context_here() if context is None else context)


class _RunOfScript(GearsFuture):
    """What `run()` returns to the body of a script: belongs to no loop."""

    def __init__(self):
        # Not the base's: the loop starts only when somebody needs it.
        pass

    def __await__(self):
        raise error("the run of a script's body can not be awaited: the reply of the command carries its results")

    __iter__ = __await__

    def __repr__(self):
        return "<GearsFuture of the script's run>"


_RUN_OF_SCRIPT = _RunOfScript()


class GearsSession:
    """`with GearsSession(s):` sets the session of this thread for the block, then sets it to None."""

    def __init__(self, s):
        self.s = s

    def __enter__(self):
        _oxigears.setGearsSession(self.s)
        return self

    def __exit__(self, kind, value, traceback):
        _oxigears.setGearsSession(None)


def run(reader, steps, local):
    """Starts an execution; the future gives its results and errors."""
    if _oxigears.is_script_body():
        _oxigears.run(reader, steps, local, None)
        return _RUN_OF_SCRIPT
    future = createFuture()
    future.executionId = _oxigears.run(reader, steps, local, future)
    return future


def createFuture():
    """A future of the shared event loop, to be awaited in a coroutine and completed from anywhere."""
    return GearsFuture(loop=_oxigears.event_loop())


def setFutureResults(f, v):
    """Completes a future; may be called by any thread."""
    f.get_loop().call_soon_threadsafe(event_loop.set_result, f, v)


def setFutureException(f, e):
    """Fails a future; may be called by any thread. What is no exception becomes one."""
    # asyncio refuses StopIteration in a future.
    if not isinstance(e, Exception) or isinstance(e, StopIteration):
        e = Exception(text_of(e))
    f.get_loop().call_soon_threadsafe(event_loop.set_exception, f, e)


def runCoroutine(cr, f=None, delay=0, s=None):
    """Runs a coroutine on the shared event loop after `delay` seconds, in session `s` or in that of the running code.

    `f`, a `gearsFuture()`, gets its value or its exception; without it nobody hears of an exception.
    """
    _oxigears.run_coroutine(cr, f, delay, s)
