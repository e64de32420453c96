"""The keywords of `register()`: what each reader takes, and what is wrong with what a script gave."""

import inspect

import _oxigears
from oxigears.errors import error

_ABSENT = object()
_MODES = ("async", "async_local", "sync")
_KEY_TYPES = ("empty", "string", "list", "hash", "set", "zset", "module", "stream")
_POLICIES = ("continue", "abort", "retry")
# Consumer groups that belong to one registration each.
_OWN_GROUPS = "__gears_consumer_group__:"

_COMMON = {"mode", "onRegistered", "onUnregistered"}
_KNOWN = {
    "CommandReader": {"trigger", "hook", "keyprefix", "inorder", "regex"},
    "KeysReader": {"regex", "eventTypes", "keyTypes", "readValue", "readAllTypes", "commands"},
    "StreamReader": {
        "regex",
        "batch",
        "duration",
        "onFailedPolicy",
        "onFailedRetryInterval",
        "trimStream",
        "group",
        "sharedGroup",
        "atomicBatch",
        "maxRetries",
        "deadLetter",
    },
    "TimerReader": {"interval", "cron", "everywhere"},
}
# Seconds: 1 ms to 100 years.
_INTERVALS = (0.001, 100 * 366 * 24 * 3600)


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
    if reader == "TimerReader":
        return _timer(**_own(reader, kwargs))
    if "regex" in kwargs:
        _log("the keyword regex is deprecated, use prefix instead")
        prefix = kwargs["regex"]
    if not isinstance(prefix, str):
        raise error("regex argument must be a string")
    prefix = _bytes(prefix)
    if reader == "KeysReader":
        return _keys(prefix, **_own(reader, kwargs))
    return _stream(prefix, mode, **_own(reader, kwargs))


def _bytes(text):
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


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
        return ("command", _bytes(trigger), inorder)
    if hook is _ABSENT:
        raise error("no trigger or hook argument was given")
    return ("hook", hook.lower(), None if keyprefix is _ABSENT else _bytes(keyprefix), inorder)


def _timer(interval=None, cron=None, everywhere=False):
    if not isinstance(everywhere, bool):
        raise error("everywhere argument must be a boolean")
    if (interval is None) == (cron is None):
        raise error("TimerReader needs either interval=<seconds> or cron=<expression>")
    if cron is not None:
        if not isinstance(cron, str):
            raise error("cron argument must be a string")
        return ("timer", cron, everywhere)
    if isinstance(interval, bool) or not isinstance(interval, int | float):
        raise error("interval argument must be a number of seconds")
    least, most = _INTERVALS
    if not least <= interval <= most:
        raise error(f"interval argument must be between {least} and {most} seconds")
    return ("timer", max(1, round(interval * 1000)), everywhere)


def _texts(value, not_iterable, not_text):
    if value is None:
        return None
    try:
        values = list(value)
    except TypeError:
        raise error(not_iterable) from None
    if not all(isinstance(text, str) for text in values):
        raise error(not_text)
    return values


def _lower(texts):
    return None if texts is None else [text.lower() for text in texts]


def _keys(prefix, eventTypes=None, keyTypes=None, readValue=True, readAllTypes=False, commands=None):
    events = _texts(eventTypes, "given eventTypes is not iterable", "given event type is not string")
    types = _texts(keyTypes, "given keyTypes is not iterable", "given key type is not string")
    if any(key_type not in _KEY_TYPES for key_type in types or ()):
        raise error("unknown key type")
    if not isinstance(readValue, bool):
        raise error("readValue is not boolean")
    if not isinstance(readAllTypes, bool):
        raise error("readAllTypes is not boolean")
    linked = _texts(commands, "given commands is not iterable", "given command type is not string")
    return ("keys", prefix, events, types, readValue, readAllTypes, _lower(linked))


def _number(value, most=2**63 - 1):
    return isinstance(value, int) and 0 <= value <= most


def _stream(
    prefix,
    mode,
    batch=1,
    duration=0,
    onFailedPolicy="continue",
    onFailedRetryInterval=1,
    trimStream=True,
    **more,
):
    if not _number(batch):
        raise error("batch argument must be a number")
    if not _number(duration):
        raise error("duration argument must be a number")
    if not isinstance(onFailedPolicy, str):
        raise error("onFailedPolicy must be a string (Continue/Abort/Retry)")
    policy = onFailedPolicy.lower()
    if policy not in _POLICIES:
        raise error("onFailedPolicy must be Continue/Abort/Retry")
    if mode == "sync" and policy != "continue":
        raise error("ExecutionMode sync can only be combined with OnFailedPolicy Continue")
    if not _number(onFailedRetryInterval):
        raise error("retryInterval argument must be a number")
    if not isinstance(trimStream, bool):
        raise error("pyTrimmStream argument must be a boolean")
    options = _stream_options(prefix, mode, policy, **more)
    return ("stream", prefix, batch, duration, policy, onFailedRetryInterval, trimStream, *options)


def _is_or_has_slot_tag(stream, dead_letter):
    """In a cluster the name of dead letters may get the stream's slot, in braces: in front if it has a brace itself."""
    if b"{" in dead_letter:
        is_it, tag = stream.endswith(dead_letter), stream[: -len(dead_letter)]
    else:
        is_it, tag = stream.startswith(dead_letter), stream[len(dead_letter) :]
    return is_it and (not tag or tag.startswith(b"{") and tag.endswith(b"}"))


def _stream_options(
    prefix, mode, policy, group=None, sharedGroup=False, atomicBatch=False, maxRetries=_ABSENT, deadLetter=None
):
    """What is beyond the original interface: group, atomic, retries, dead-letter stream."""
    for name, value in (("sharedGroup", sharedGroup), ("atomicBatch", atomicBatch)):
        if not isinstance(value, bool):
            raise error(f"{name} argument must be a boolean")
    for name, value in (("group", group), ("deadLetter", deadLetter)):
        if value is not None and not (isinstance(value, str) and value):
            raise error(f"{name} argument must be a string that is not empty")
    if group is not None and sharedGroup:
        raise error("group argument can not be given with sharedGroup")
    if group is not None and group.startswith(_OWN_GROUPS):
        raise error(f"group argument can not begin with {_OWN_GROUPS}")
    if atomicBatch and mode == "async":
        raise error("atomicBatch can not be combined with ExecutionMode async")
    if deadLetter is not None and policy != "retry":
        raise error("deadLetter can only be combined with OnFailedPolicy Retry")
    if deadLetter is not None and _is_or_has_slot_tag(prefix, _bytes(deadLetter)):
        raise error("deadLetter argument must be another stream")
    if maxRetries is not _ABSENT and deadLetter is None:
        raise error("maxRetries can only be given with deadLetter")
    retries = 3 if maxRetries is _ABSENT else maxRetries
    if not _number(retries):
        raise error("maxRetries argument must be a number")
    named = b"" if sharedGroup else None if group is None else _bytes(group)
    return named, atomicBatch, retries, None if deadLetter is None else _bytes(deadLetter)
