"""The keywords of `register()`: what each reader takes, and what is wrong with what a script gave."""

import inspect

import _oxigears
from oxigears.errors import error

_ABSENT = object()
_MODES = ("async", "async_local", "sync")
_KEY_TYPES = ("empty", "string", "list", "hash", "set", "zset", "module", "stream")
_POLICIES = ("continue", "abort", "retry")

_COMMON = {"mode", "onRegistered", "onUnregistered"}
_KNOWN = {
    "CommandReader": {"trigger", "hook", "keyprefix", "inorder", "regex"},
    "KeysReader": {"regex", "eventTypes", "keyTypes", "readValue", "commands"},
    "StreamReader": {"regex", "batch", "duration", "onFailedPolicy", "onFailedRetryInterval", "trimStream"},
}


def mode(given):
    """The mode of a registration."""
    if not isinstance(given, str):
        raise error("execution mode must be a string")
    if given not in _MODES:
        raise error("unknown execution mode")
    return given


def callback(is_function, kwargs, keyword):
    """The function under `onRegistered` or `onUnregistered`, or None."""
    given = kwargs.get(keyword)
    if given is None:
        return None
    if not is_function(given):
        raise error(f"{keyword[0].upper()}{keyword[1:]} argument must be a function")
    if inspect.iscoroutinefunction(given):
        name = getattr(given, "__name__", "?")
        _log(f"{keyword} is a coroutine function ({name}), which is refused: it will not be called")
        return None
    return given


def source(reader, prefix, mode, kwargs):
    """What fires the registration, for the engine."""
    if reader not in _KNOWN:
        raise error("given reader does not exists or does not support register")
    unknown = [keyword for keyword in kwargs if keyword not in _KNOWN[reader] and keyword not in _COMMON]
    if unknown:
        _log(f"{reader} does not know these keywords, they are ignored: {', '.join(unknown)}")
    if reader == "CommandReader":
        return _command(**_own(reader, kwargs))
    if "regex" in kwargs:
        _log("the keyword regex is deprecated, use prefix instead")
        prefix = kwargs["regex"]
    if not isinstance(prefix, str):
        raise error("regex argument must be a string")
    if reader == "KeysReader":
        _check_keys(**_own(reader, kwargs))
    else:
        _check_stream(mode, **_own(reader, kwargs))
    raise error(f"register() of {reader} is not supported yet")


def _log(text):
    _oxigears.log("warning", f"GEARS: register(): {text}")


def _own(reader, kwargs):
    return {keyword: value for keyword, value in kwargs.items() if keyword in _KNOWN[reader] and keyword != "regex"}


def _command(trigger=_ABSENT, hook=_ABSENT, keyprefix=_ABSENT, inorder=False):
    if not isinstance(inorder, bool):
        raise error("inorder argument is be boolean")
    for name, value in (("hook", hook), ("keyprefix", keyprefix)):
        if value is not _ABSENT and not isinstance(value, str):
            raise error(f"{name} argument is not string")
    if trigger is not _ABSENT:
        if not isinstance(trigger, str | bytes | bytearray):
            raise error("trigger argument is not string")
        if hook is not _ABSENT or keyprefix is not _ABSENT:
            raise error("trigger argument can not be given with keyprefix or hook")
        if isinstance(trigger, str):
            trigger = trigger.encode("utf-8", "surrogateescape")
        return ("command", bytes(trigger), inorder)
    if hook is _ABSENT:
        raise error("no trigger or hook argument was given")
    raise error("register() with hook is not supported yet")


def _texts(value, not_iterable, not_text):
    if value is None:
        return []
    try:
        values = list(value)
    except TypeError:
        raise error(not_iterable) from None
    if not all(isinstance(text, str) for text in values):
        raise error(not_text)
    return values


def _check_keys(eventTypes=None, keyTypes=None, readValue=True, commands=None):
    _texts(eventTypes, "given eventTypes is not iterable", "given event type is not string")
    for key_type in _texts(keyTypes, "given keyTypes is not iterable", "given key type is not string"):
        if key_type not in _KEY_TYPES:
            raise error("unknown key type")
    if not isinstance(readValue, bool):
        raise error("readValue is not boolean")
    _texts(commands, "given commands is not iterable", "given command type is not string")


def _check_stream(mode, batch=1, duration=0, onFailedPolicy="continue", onFailedRetryInterval=1, trimStream=True):
    if not isinstance(batch, int):
        raise error("batch argument must be a number")
    if not isinstance(duration, int):
        raise error("duration argument must be a number")
    if not isinstance(onFailedPolicy, str):
        raise error("onFailedPolicy must be a string (Continue/Abort/Retry)")
    if onFailedPolicy.lower() not in _POLICIES:
        raise error("onFailedPolicy must be Continue/Abort/Retry")
    if mode == "sync" and onFailedPolicy.lower() != "continue":
        raise error("ExecutionMode sync can only be combined with OnFailedPolicy Continue")
    if not isinstance(onFailedRetryInterval, int):
        raise error("retryInterval argument must be a number")
    if not isinstance(trimStream, bool):
        raise error("pyTrimmStream argument must be a boolean")
