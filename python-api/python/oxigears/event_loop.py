"""The event loop that all sessions share, as the engine starts it. Scripts reach it through `oxigears.futures`."""

import asyncio
import contextvars
import selectors
import types
import weakref

import _oxigears

# The driver of the coroutine to which running code belongs. Tasks and callbacks that it makes inherit it.
_DRIVER = contextvars.ContextVar("oxigears_driver", default=None)


class _Loop(asyncio.SelectorEventLoop):
    """Callbacks of scripts have the session and the rights of the coroutine that asked for them."""

    def call_soon(self, callback, *args, context=None):
        callback, args = _belonging(callback, args, context)
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        callback, args = _belonging(callback, args, context)
        return super().call_at(when, callback, *args, context=context)

    def call_soon_threadsafe(self, callback, *args, context=None):
        callback, args = _belonging(callback, args, context)
        return super().call_soon_threadsafe(callback, *args, context=context)

    # What asyncio's own transports use, too.
    def _add_reader(self, fd, callback, *args):
        callback, args = _belonging(callback, args, None)
        return super()._add_reader(fd, callback, *args)

    def _add_writer(self, fd, callback, *args):
        callback, args = _belonging(callback, args, None)
        return super()._add_writer(fd, callback, *args)


class _Probe:
    """A loop that only looks at what a new task gives it: the type of that has no public name."""

    def call_soon(self, callback, *args, context=None):
        self.step = type(callback)

    def get_debug(self):
        return False


def _step_type():
    async def nothing():
        pass

    probe, coroutine = _Probe(), nothing()
    task = asyncio.Task(coroutine, loop=probe)
    task._log_destroy_pending = False
    coroutine.close()
    return probe.step


_OF_TASKS = (_step_type(), types.BuiltinFunctionType)


def _belonging(callback, args, context):
    if callback is set_result or callback is set_exception:
        return callback, args
    driver = _DRIVER.get() if context is None else context.get(_DRIVER)
    if driver is None:
        driver = _oxigears.caller()
    if driver is None:
        return callback, args
    if type(callback) in _OF_TASKS:
        # The steps of a task, which enters its session itself.
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task) and type(task.get_coro()) is _oxigears.Driver:
            return callback, args
    return driver.call, (callback, *args)


def context_here():
    """A context whose callbacks have the session and the rights of running code; None: it has none."""
    if _DRIVER.get() is not None:
        return contextvars.copy_context()
    driver = _oxigears.caller()
    if driver is None:
        return None
    context = contextvars.copy_context()
    context.run(_DRIVER.set, driver)
    return context


class _Selector(selectors.DefaultSelector):
    """While the loop has always something to do it lets others have the interpreter in between."""

    def select(self, timeout=None):
        _oxigears.turn_over()
        if timeout is not None and timeout <= 0:
            _oxigears.give_way()
        return super().select(timeout)


def create(descriptor):
    """A loop that does what the engine asks for whenever the descriptor can be read."""
    session = _oxigears.getGearsSession()
    # What it watches for itself is not of the session that needs a loop first.
    _oxigears.setGearsSession(None)
    try:
        loop = _Loop(_Selector())
        loop.add_reader(descriptor, _oxigears.drain)
    finally:
        _oxigears.setGearsSession(session)
    loop.set_task_factory(_task)
    loop.set_exception_handler(_on_exception)
    return loop


def run(loop):
    """Runs the loop on this thread for ever: neither an exception nor `stop()` of a script ends it."""
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except BaseException as exception:
            _on_exception(loop, {"message": "a callback tried to end it", "exception": exception})


def start(loop, driver, delay):
    """Makes a task of a coroutine, now or later."""
    if delay > 0:
        loop.call_later(delay, start, loop, driver, 0)
        return None
    context = contextvars.Context()
    context.run(_DRIVER.set, driver)
    return weakref.ref(asyncio.Task(driver, loop=loop, context=context))


def set_result(future, value):
    """Completes a future, if nobody did."""
    if not future.done():
        future.set_result(value)


def set_exception(future, exception):
    """Fails a future, if nobody completed it."""
    if not future.done():
        future.set_exception(exception)


def _task(loop, coroutine, **kwargs):
    return asyncio.Task(_oxigears.drive(coroutine), loop=loop, **kwargs)


def _on_exception(loop, context):
    exception = context.get("exception")
    shown = f": {exception!r}" if exception is not None else ""
    _oxigears.log("warning", f"GEARS: event loop: {context.get('message')}{shown}")
