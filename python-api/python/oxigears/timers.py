"""`registerTE()`: repeating timers."""

import inspect

import _oxigears
from oxigears.builder import _is_function
from oxigears.errors import error


def registerTE(*args, **kwargs):
    """`registerTE(seconds, callback, key=None)`: calls `callback()` on this shard, `seconds` after each end.

    With a key the timer is the key's value and lasts as long as the key. Gives True, or False if the key holds
    something already.
    """
    if len(args) not in (2, 3) or (kwargs and (len(args) == 3 or list(kwargs) != ["key"])):
        raise error("not enough arguments for time event")
    seconds, callback, key = (*args, kwargs.get("key"))[:3]
    if not _is_function(callback):
        raise error("callback must be a function")
    if inspect.iscoroutinefunction(callback):
        raise error("callback must be a function, not a coroutine function: nothing would wait for it")
    if not isinstance(seconds, int):
        raise error("time argument must be a long")
    return _oxigears.register_timer(seconds, callback, key)
