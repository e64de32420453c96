"""The names that every script sees."""

import asyncio
import copy
import cProfile
import io
import pickle
import pstats
import sys
import threading
import time
import traceback
import types
import weakref
from asyncio import Future
from threading import Thread

import _oxigears
from _oxigears import (
    atomic,
    call_next,
    execute,
    gearsFuture,
    get_command,
    getGearsSession,
    hashtag,
    isAsyncAllow,
    isInAtomicBlock,
    override_reply,
    registerGearsThread,
    setGearsSession,
)
from oxigears import cloudpickle, errors, native_module, output, pickling
from oxigears.builder import GB, GearsBuilder
from oxigears.futures import (
    GearsFuture,
    GearsSession,
    createFuture,
    runCoroutine,
    setFutureException,
    setFutureResults,
)
from oxigears.profiling import profileGetInfo, profilerCreate, profileStart, profileStop
from oxigears.timers import registerTE

_LEVELS = ("debug", "verbose", "notice", "warning")
_STACK_BYTES = 64 * 1024 * 1024


def flat_error(*args):
    """Fails with an error whose text reaches the client bare."""
    if not args:
        raise errors.error("not enough arguments for time flat error")
    raise errors.flat_error(args[0])


def log(*args, **kwargs):
    """Writes a message to the server log: `log(msg, level='notice')`."""
    if len(args) + len(kwargs) == 0:
        raise errors.error("log function must get a log message as input")
    if len(args) == 2 and not kwargs:
        _oxigears.log("warning", "GEARS: log(level, message) is deprecated, use log(message, level=level) instead")
        level, message = args
    else:
        message, level = _log_arguments(*args, **kwargs)
    if not isinstance(message, str):
        raise errors.error("Log message must be a string")
    if not isinstance(level, str):
        raise errors.error("Log level must be a sting (debug/verbose/notice/warning)")
    if level not in _LEVELS:
        raise errors.error("Log level should be one of the following : " + ",".join(_LEVELS))
    _oxigears.log(level, "GEARS: " + message)


def _log_arguments(msg=None, level="notice"):
    return msg, level


def configGet(*args):
    """The value of a user-defined configuration key, or None."""
    if len(args) != 1:
        raise errors.error("get_config function must get a single key input")
    if not isinstance(args[0], str):
        raise errors.error("get_config key must be a string")
    return _oxigears.config_get(args[0])


def gearsConfigGet(key, default=None):
    """Like `configGet`, with a default."""
    value = configGet(key)
    return default if value is None else value


def genDeprecated(deprecated, name, function):
    """A function that logs that its name is old."""

    def call(*args, **kwargs):
        _oxigears.log("warning", f"GEARS: {deprecated} is deprecated, use {name} instead")
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = deprecated
    return call


Log = genDeprecated("Log", "log", log)
ConfigGet = genDeprecated("ConfigGet", "configGet", configGet)
GearsConfigGet = genDeprecated("GearsConfigGet", "gearsConfigGet", gearsConfigGet)

redisgears = rg = native_module.create(
    {
        "executeCommand": execute,
        "callNext": call_next,
        "getCommand": get_command,
        "overrideReply": override_reply,
        "atomicCtx": atomic,
        "gearsFutureCtx": gearsFuture,
        "getMyHashTag": hashtag,
        "registerTimeEvent": registerTE,
        "log": log,
        "setGearsSession": setGearsSession,
        "getGearsSession": getGearsSession,
        "registerGearsThread": registerGearsThread,
        "isInAtomicBlock": isInAtomicBlock,
        "config_get": configGet,
        "isAsyncAllow": isAsyncAllow,
        "flatError": flat_error,
        "gearsCtx": GearsBuilder,
        "GearsError": errors.error,
        "GearsFlatError": errors.flat_error,
        "GearsForceStopped": errors.forcestopped,
        "PyFlatExecution": GearsBuilder,
        "PyExecutionSession": _oxigears.PyExecutionSession,
        "PyAtomic": _oxigears.PyAtomic,
        "PyFuture": _oxigears.PyFuture,
    }
)
gearsCtx = PyFlatExecution = GearsBuilder
CloudPickler = cloudpickle.Pickler
dumps, loads = cloudpickle.dumps, cloudpickle.loads

__all__ = [
    "CloudPickler",
    "ConfigGet",
    "Future",
    "GB",
    "GearsBuilder",
    "GearsConfigGet",
    "GearsFuture",
    "GearsSession",
    "Log",
    "PyFlatExecution",
    "Thread",
    "asyncio",
    "atomic",
    "cProfile",
    "call_next",
    "configGet",
    "copy",
    "createFuture",
    "dumps",
    "execute",
    "flat_error",
    "gearsConfigGet",
    "gearsCtx",
    "gearsFuture",
    "genDeprecated",
    "getGearsSession",
    "get_command",
    "hashtag",
    "io",
    "isAsyncAllow",
    "isInAtomicBlock",
    "loads",
    "log",
    "override_reply",
    "pickle",
    "profileGetInfo",
    "profileStart",
    "profileStop",
    "profilerCreate",
    "pstats",
    "redisgears",
    "registerGearsThread",
    "registerTE",
    "rg",
    "runCoroutine",
    "setFutureException",
    "setFutureResults",
    "setGearsSession",
    "sys",
    "threading",
    "time",
    "traceback",
    "types",
    "weakref",
]

# What each session's globals start from.
base_environment = {name: globals()[name] for name in __all__}
pickling.base_names.update(base_environment)


def prepare_process(deepest_recursion):
    """Settings of the interpreter that all scripts share."""
    # Libraries look for the builtin names there: in the original scripts ran in that module.
    vars(sys.modules["__main__"]).update(base_environment)
    sys.argv = ["oxigears"]
    output.redirect()
    threading.stack_size(_STACK_BYTES)
    set_limit = sys.setrecursionlimit

    def setrecursionlimit(limit, /):
        # A deeper recursion would run over the end of the thread's stack.
        set_limit(min(limit, deepest_recursion))

    sys.setrecursionlimit = setrecursionlimit
