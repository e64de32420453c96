"""The names that every script sees."""

import asyncio as asyncio
import copy as copy
import cProfile as cProfile
import io as io
import pickle as pickle
import pstats as pstats
import sys as sys
import threading as threading
import time as time
import traceback as traceback
import types as types
import weakref as weakref
from asyncio import Future as Future
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from threading import Thread as Thread
from typing import Any, Literal, NoReturn, TypeVar, overload

import redisgears as redisgears
import rg as rg
from redisgears import PyExecutionSession, PyFuture

__version__: str

_B = TypeVar("_B", bound="GearsBuilder")
_Reader = Literal[
    "KeysReader",
    "KeysOnlyReader",
    "StreamReader",
    "PythonReader",
    "ShardsIDReader",
    "CommandReader",
    "TimerReader",
]
_KeyType = Literal["empty", "string", "list", "hash", "set", "zset", "module", "stream"]
_Mode = Literal["async", "async_local"]
_RegisterMode = Literal["async", "async_local", "sync"]
_Level = Literal["debug", "verbose", "notice", "warning"]
_Function = Callable[[Any], Any]

class GearsFuture(Future[Any]):
    """A future of the shared event loop. What `run()` returns gives `[results, errors]` when a coroutine awaits it."""

    executionId: str | None

class GearsSession:
    """`with GearsSession(s):` sets the session of this thread for the block, then sets it to None."""

    s: PyExecutionSession | None
    def __init__(self, s: PyExecutionSession | None) -> None: ...
    def __enter__(self) -> GearsSession: ...
    def __exit__(self, *args: object) -> None: ...

class GearsBuilder:
    """A pipeline: a reader, then operations, then `run` or `register`."""

    def __init__(self, reader: _Reader = "KeysReader", defaultArg: Any = "*", desc: str | None = None) -> None: ...
    def map(self: _B, f: _Function, /) -> _B:
        """`f(record)` is the new record."""
    def filter(self: _B, f: _Function, /) -> _B:
        """Keeps records whose `f(record)` is true."""
    def foreach(self: _B, f: _Function, /) -> _B:
        """Calls `f(record)` and passes the record on."""
    def flatmap(self: _B, f: _Function, /) -> _B:
        """The elements of the list `f(record)` become records; anything else passes as one record."""
    def accumulate(self: _B, f: Callable[[Any, Any], Any], /) -> _B:
        """`f(a, record)` is the new accumulator of the shard, `None` at first."""
    def limit(self: _B, length: int, start: int = 0, /) -> _B:
        """Passes records number `start` to `start + length - 1` of each shard."""
    def collect(self: _B) -> _B:
        """Moves all records to the shard that started the execution."""
    def repartition(self: _B, extractor: _Function, /) -> _B:
        """Moves each record to the shard that owns the key `extractor(record)`."""
    def groupby(self: _B, extractor: _Function, reducer: Callable[[str, Any, Any], Any], /) -> _B:
        """`reducer(key, a, record)` per key of the whole cluster; gives `{'key': ..., 'value': ...}`."""
    def localgroupby(self: _B, extractor: _Function, reducer: Callable[[str, Any, Any], Any], /) -> _B:
        """Like `groupby`, for the records of each shard."""
    def batchgroupby(self: _B, extractor: _Function, reducer: Callable[[str, list[Any]], Any], /) -> _B:
        """`reducer(key, records)` once per key of the whole cluster."""
    def aggregate(self: _B, zero: Any, seqOp: Callable[[Any, Any], Any], combOp: Callable[[Any, Any], Any]) -> _B:
        """`seqOp(a, record)` on each shard, then `combOp(a, part)`; a falsy `a` starts from a copy of `zero`."""
    def aggregateby(
        self: _B,
        extractor: _Function,
        zero: Any,
        seqOp: Callable[[str, Any, Any], Any],
        combOp: Callable[[str, Any, Any], Any],
    ) -> _B:
        """`seqOp(key, a, record)` per key and shard, then `combOp(key, a, part)` per key."""
    def count(self: _B) -> _B:
        """The number of records; no record at all if there is none."""
    def countby(self: _B, extractor: _Function | None = None) -> _B:
        """The number of records per `extractor(record)`: `{'key': ..., 'value': ...}`."""
    def sort(self: _B, reverse: bool = True) -> _B:
        """Sorts all records: ascending by default, descending with `reverse=False`."""
    def distinct(self: _B) -> _B:
        """Each value once."""
    def avg(self: _B, extractor: _Function | None = None) -> _B:
        """The mean of `extractor(record)`, or of `float(record)`."""
    def run(
        self,
        arg: Any = None,
        convertToStr: bool = True,
        collect: bool = True,
        *,
        mode: _Mode = "async",
        noScan: bool = False,
        readValue: bool = True,
        readAllTypes: bool = False,
        count: int = 1000,
        patternGenerator: Callable[[], tuple[str, bool]] | None = None,
        fromId: str = "0-0",
    ) -> GearsFuture:
        """Starts an execution. Which keywords count depends on the reader."""
    @overload
    def register(
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        *,
        mode: _RegisterMode = "async",
        eventTypes: Iterable[str] | None = None,
        keyTypes: Iterable[_KeyType] | None = None,
        readValue: bool = True,
        readAllTypes: bool = False,
        commands: Iterable[str] | None = None,
        onRegistered: Callable[[], object] | None = None,
        onUnregistered: Callable[[], object] | None = None,
    ) -> str:
        """KeysReader: runs the pipeline for each event of a key; gives the registration's id.

        The record is `{'event', 'key', 'type', 'value'}`.

        prefix: an exact key name, or with `*` at its end the beginning of names.
        mode: `'sync'`: right after the command, atomically with it; `'async_local'`: on a thread of the shard where it
            happened; `'async'`: as an execution of all shards, the record on that one.
        eventTypes: names of events (`'set'`, `'hset'`, `'expired'`, `'evicted'`, `'keymiss'`, ...); default all.
        keyTypes: types that the key has at the time of the event; default all.
        readValue: False: the record has only `event` and `key`.
        readAllTypes: values of sets, sorted sets and streams too.
        commands: only events that these commands of clients cause; their client waits for the executions, which may use
            `get_command()` and `override_reply(x)`.
        onRegistered, onUnregistered: called on each node when the registration becomes active there (after restarts
            too), and when it is gone.
        """
    @overload
    def register(
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        *,
        mode: _RegisterMode = "async",
        batch: int = 1,
        duration: int = 0,
        onFailedPolicy: str = "continue",
        onFailedRetryInterval: int = 1,
        trimStream: bool = True,
        group: str | None = None,
        sharedGroup: bool = False,
        atomicBatch: bool = False,
        maxRetries: int = 3,
        deadLetter: str | None = None,
        onRegistered: Callable[[], object] | None = None,
        onUnregistered: Callable[[], object] | None = None,
    ) -> str:
        """StreamReader: runs the pipeline for the entries of streams, in order; gives the registration's id.

        The records are `{'key', 'id', 'value'}`.

        prefix: the exact name of a stream, or with `*` at its end the beginning of names.
        batch: number of entries that start an execution.
        duration: milliseconds after which fewer entries start one; 0: never.
        onFailedPolicy: what a batch with an error does: `'continue'` counts it as done, `'abort'` stops until the
            registration is unpaused, `'retry'` tries it again.
        onFailedRetryInterval: seconds before that.
        trimStream: entries that all registrations have processed are removed.
        group: name of the consumer group; default: one of the registration's own.
        sharedGroup: the group that all registrations of RedisGears share: each entry goes to one of them.
        atomicBatch: what the steps write by `execute()` and the acknowledgement of the batch are one transaction (modes
            `'sync'` and `'async_local'`).
        maxRetries: tries of a batch after the first before its entries go to `deadLetter` (with it only).
        deadLetter: name of a stream, in the same slot, for entries that failed too often (policy `'retry'` only).
        onRegistered, onUnregistered: as for KeysReader.
        """
    @overload
    def register(
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        *,
        trigger: str | bytes,
        mode: _RegisterMode = "async",
        inorder: bool = False,
        onRegistered: Callable[[], object] | None = None,
        onUnregistered: Callable[[], object] | None = None,
    ) -> str:
        """CommandReader: runs the pipeline for `RG.TRIGGER <trigger> ...`; gives the registration's id.

        The record is the list `[trigger, argument, ...]`.

        mode: `'sync'`: at once, atomically; `'async_local'`: on a thread of the shard; `'async'`: on all shards, each
            of which gets the record.
        inorder: executions run one after another.
        onRegistered, onUnregistered: as for KeysReader.
        """
    @overload
    def register(
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        *,
        hook: str,
        keyprefix: str | None = None,
        mode: _RegisterMode = "async",
        inorder: bool = False,
        onRegistered: Callable[[], object] | None = None,
        onUnregistered: Callable[[], object] | None = None,
    ) -> str:
        """CommandReader: runs the pipeline in place of a command of clients; gives the registration's id.

        The record is the command as a list, its name first. The pipeline must give exactly one result, the reply.
        `call_next(argument, ...)` runs the next older hook, at last the command itself.

        hook: name of the command, in any case.
        keyprefix: only commands of which some key begins with this.
        mode, inorder, onRegistered, onUnregistered: as for `trigger`.
        """
    @overload
    def register(
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        *,
        interval: float,
        everywhere: bool = False,
        mode: _RegisterMode = "async",
        onRegistered: Callable[[], object] | None = None,
        onUnregistered: Callable[[], object] | None = None,
    ) -> str:
        """TimerReader: runs the pipeline again and again; gives the registration's id.

        The record is `{'scheduled': ms, 'fired': ms, 'count': n}`: the moment that was due and the one at which it
        fired, in milliseconds since 1970, and how often this node has fired since the registration became active.

        interval: seconds from one moment to the next, from 0.001 on.
        everywhere: every shard fires; default: one shard of the cluster.
        mode: `'sync'`: under the server lock; `'async_local'`: on a thread of the shard that fires; `'async'`: on all
            shards, each of which gets the record.
        onRegistered, onUnregistered: as for KeysReader.
        """
    @overload
    def register(
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        *,
        cron: str,
        everywhere: bool = False,
        mode: _RegisterMode = "async",
        onRegistered: Callable[[], object] | None = None,
        onUnregistered: Callable[[], object] | None = None,
    ) -> str:
        """TimerReader: as with `interval`, at the minutes that a cron expression names, in UTC.

        cron: five fields: minute, hour, day of month, month, day of week (0 or 7: Sunday). Each is a list of `*`,
            numbers, ranges and steps (`*/5`, `9-17/2`); months and days also have names of three letters. If neither
            day field begins with `*`, a day that is in one of them is enough.
        """

GB = GearsBuilder
gearsCtx = GearsBuilder
PyFlatExecution = GearsBuilder

def execute(cmd: str = ..., /, *args: Any) -> Any:
    """Runs a command on this shard; raises `redisgears.GearsError` for an error reply."""

def atomic() -> AbstractContextManager[Any]:
    """`with atomic():` runs no other client or function in between."""

def isInAtomicBlock() -> bool: ...
def hashtag() -> str:
    """A text whose slot is the lowest slot of this shard: `'k{%s}' % hashtag()` is a key that lives here."""

@overload
def log(msg: str, /, *, level: _Level = "notice") -> None: ...
@overload
def log(*, msg: str, level: _Level = "notice") -> None: ...
def configGet(key: str, /) -> str | None:
    """A user-defined configuration value."""

def gearsConfigGet(key: str, default: Any = None) -> Any: ...
def flat_error(msg: object, /) -> NoReturn:
    """Fails with an error whose text reaches the client bare."""

def call_next(*args: Any) -> Any: ...
def get_command() -> list[str | bytearray]: ...
def override_reply(x: Any, /) -> None: ...
def gearsFuture() -> PyFuture:
    """Postpones the record at hand: return it from the step, and complete it later from anywhere."""

def isAsyncAllow() -> bool:
    """True in a step that may return a coroutine or a `gearsFuture()`; False in MULTI, Lua and coroutines."""

def createFuture() -> GearsFuture:
    """A future to be awaited in a coroutine and completed by `setFutureResults` or `setFutureException`."""

def setFutureResults(f: Future[Any], v: Any) -> None:
    """Completes a future; may be called by any thread."""

def setFutureException(f: Future[Any], e: Any) -> None:
    """Fails a future; may be called by any thread. What is no exception becomes one."""

def runCoroutine(
    cr: Coroutine[Any, Any, Any], f: PyFuture | None = None, delay: float = 0, s: PyExecutionSession | None = None
) -> None:
    """Runs a coroutine on the shared event loop after `delay` seconds; `f` gets its value or its exception."""

def registerTE(seconds: int, callback: Callable[[], Any], /, key: str | bytes | None = None) -> bool:
    """Calls `callback()` on this shard, `seconds` after each end, with the server lock held; on masters only.

    With a key the timer is the key's value (type `rg_timeev`) and lasts as long as the key. Without, it lasts until
    the server ends. An exception stops it for good. Gives True, or False if the key holds something already.
    """

def getGearsSession() -> PyExecutionSession | None: ...
def setGearsSession(s: PyExecutionSession | None, /) -> None: ...
def registerGearsThread() -> None: ...
def profilerCreate() -> cProfile.Profile: ...
def profileStart(profiler: cProfile.Profile) -> None: ...
def profileStop(profiler: cProfile.Profile) -> None: ...
def profileGetInfo(profiler: cProfile.Profile, order: str = "cumulative") -> str: ...

# Deprecated names.
Log = log
ConfigGet = configGet
GearsConfigGet = gearsConfigGet

CloudPickler: type

def dumps(obj: Any, protocol: int | None = None, buffer_callback: Any = None) -> bytes: ...
def loads(data: bytes, /, *, buffers: Iterable[Any] | None = ()) -> Any: ...
def genDeprecated(deprecated: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]: ...
