"""The event loop that all sessions share, as the engine starts it. Scripts reach it through `oxigears.futures`."""

import asyncio
import weakref

import _oxigears


def create(descriptor):
    """A loop that does what the engine asks for whenever the descriptor can be read."""
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(_task)
    loop.set_exception_handler(_on_exception)
    loop.add_reader(descriptor, _oxigears.drain)
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
    return weakref.ref(asyncio.Task(driver, loop=loop))


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
