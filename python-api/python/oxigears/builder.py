"""GearsBuilder: collects a reader and operations, and asks the engine to run them."""

import types

import _oxigears
from oxigears import futures, registering
from oxigears.errors import error

_READERS = (
    "KeysReader",
    "KeysOnlyReader",
    "StreamReader",
    "PythonReader",
    "ShardsIDReader",
    "CommandReader",
    "TimerReader",
)
_UINT64 = (1 << 64) - 1


def _is_function(value):
    """Any callable but the interpreter's own functions, which scripts must wrap."""
    return callable(value) and not isinstance(value, types.BuiltinFunctionType)


def _function(value, what):
    if not _is_function(value):
        raise error(f"{what} argument must be a function")
    return value


def _one_function(args, op):
    if len(args) != 1:
        raise error(f"wrong number of args to {op} function")
    return _function(args[0], op)


def _extractor_and_reducer(args, op):
    if len(args) != 2:
        raise error(f"wrong number of args to {op} function")
    return _function(args[0], f"{op} extractor"), args[1]


def _boolean(value, text):
    if not isinstance(value, bool):
        raise error(text)
    return value


def _bytes(text):
    return text.encode("utf-8", "surrogateescape")


class GearsBuilder:
    """A pipeline: `GearsBuilder('KeysReader').map(...).run('*')`."""

    def __init__(self, reader="KeysReader", defaultArg="*", desc=None):
        _oxigears.check_thread()
        if not isinstance(reader, str):
            raise error("reader argument must be a string")
        if desc is not None and not isinstance(desc, str):
            raise error("desc argument must be a string")
        if reader not in _READERS:
            raise error("The given reader does not exists")
        self._reader = reader
        self._default = defaultArg
        self._description = desc
        self._steps = []
        _oxigears.builder_made()

    def _add(self, *step):
        self._steps.append(step)
        return self

    # Local steps

    def map(self, *args):
        """`map(f)`: `f(record)` is the new record."""
        return self._add("map", _one_function(args, "map"))

    def filter(self, *args):
        """`filter(f)`: keeps records whose `f(record)` is true."""
        return self._add("filter", _one_function(args, "filter"))

    def foreach(self, *args):
        """`foreach(f)`: calls `f(record)` and passes the record on."""
        return self._add("foreach", _one_function(args, "foreach"))

    def flatmap(self, *args):
        """`flatmap(f)`: the elements of the list `f(record)` become records."""
        return self._add("flatmap", _one_function(args, "flatmap"))

    def accumulate(self, *args):
        """`accumulate(f)`: `f(a, record)` is the new accumulator, `None` at first."""
        return self._add("accumulate", _one_function(args, "accumulate"))

    def limit(self, *args):
        """`limit(length, start=0)`: passes that many records of each shard."""
        if len(args) not in (1, 2):
            raise error("wrong number of args to limit function")
        if not all(isinstance(arg, int) for arg in args):
            raise error("limit argument must be a number")
        length, start = (*args, 0)[:2]
        return self._add("limit", length & _UINT64, start & _UINT64)

    def localgroupby(self, *args):
        """`localgroupby(extractor, reducer)`: groups the records of each shard."""
        extractor, reducer = _extractor_and_reducer(args, "groupby")
        return self._add("localgroupby", extractor, _function(reducer, "groupby reducer"))

    # Steps in which records travel

    def collect(self, *args):
        """`collect()`: moves all records to the shard that started the execution."""
        if args:
            raise error("wrong number of args to collect function")
        return self._add("collect")

    def repartition(self, *args):
        """`repartition(extractor)`: moves each record to the shard that owns the key `extractor(record)`."""
        return self._add("repartition", _one_function(args, "repartition"))

    def groupby(self, *args):
        """`groupby(extractor, reducer)`: `reducer(key, a, record)` per key of the whole cluster."""
        extractor, reducer = _extractor_and_reducer(args, "groupby")
        return self._add("groupby", extractor, _function(reducer, "groupby reducer"))

    def batchgroupby(self, *args):
        """`batchgroupby(extractor, reducer)`: `reducer(key, records)` once per key."""
        return self._add("batchgroupby", *_extractor_and_reducer(args, "batchgroupby"))

    # Composed steps. Their functions are not checked here: a wrong one fails on each record.

    def aggregate(self, zero, seqOp, combOp):
        """`seqOp(a, record)` on each shard, then `combOp(a, part)` where the execution started."""
        return self._add("aggregate", zero, seqOp, combOp)

    def aggregateby(self, extractor, zero, seqOp, combOp):
        """`seqOp(key, a, record)` per key and shard, then `combOp(key, a, part)` per key."""
        return self._add("aggregateby", extractor, zero, seqOp, combOp)

    def __localAggregateby__(self, extractor, zero, agg):
        return self._add("localaggregateby", extractor, zero, agg)

    def count(self):
        """The number of records; no record at all if there is none."""
        return self._add("count")

    def countby(self, extractor=None):
        """The number of records per `extractor(record)`, or per record."""
        return self._add("countby", extractor)

    def sort(self, reverse=True):
        """Sorts all records: ascending by default, descending with `reverse=False`."""
        return self._add("sort", bool(reverse))

    def distinct(self):
        """Each value once."""
        return self._add("distinct")

    def avg(self, extractor=None):
        """The mean of `extractor(record)`, or of `float(record)`."""
        if extractor is not None:
            _function(extractor, "map")
        return self._add("avg", extractor)

    # Starting

    def run(self, arg=None, convertToStr=True, collect=True, **kwargs):
        """Starts an execution of the pipeline; the reply of the command carries its results."""
        if convertToStr:
            self._add("str")
        if collect:
            self._add("collect")
        reader = self._run_reader(arg if arg else self._default, kwargs)
        return futures.run(reader, self._steps, _is_local(kwargs.get("mode", "async")))

    def register(self, prefix="*", convertToStr=True, collect=True, **kwargs):
        """Registers the pipeline for events; gives the registration's id."""
        if convertToStr:
            self._add("str")
        if collect:
            self._add("collect")
        mode = registering.mode(kwargs.get("mode", "async"))
        on_registered = registering.callback(_is_function, kwargs, "onRegistered")
        on_unregistered = registering.callback(_is_function, kwargs, "onUnregistered")
        source = registering.source(self._reader, prefix, mode, kwargs)
        return _oxigears.register(source, self._steps, mode, self._description, on_registered, on_unregistered)

    def _run_reader(self, arg, kwargs):
        match self._reader:
            case "KeysReader":
                return _keys_reader(arg, **kwargs)
            case "KeysOnlyReader":
                return _keys_only_reader(arg, **kwargs)
            case "StreamReader":
                return _stream_reader(arg, **kwargs)
            case "PythonReader":
                return _python_reader(arg)
            case "ShardsIDReader":
                return ("shards",)
            case _:
                raise error("Given reader do not support run or not exists")


GB = GearsBuilder


def _is_local(mode):
    if not isinstance(mode, str):
        raise error("execution mode must be a string")
    if mode not in ("async", "async_local"):
        raise error("unknown execution mode")
    return mode == "async_local"


# What `run` hands to the engine for each reader. Unknown keywords are ignored, as they always were.


def _keys_reader(arg, noScan=False, readValue=True, readAllTypes=False, **_):
    if not isinstance(arg, str):
        raise error("regex argument must be a string")
    return (
        "keys",
        _bytes(arg),
        _boolean(noScan, "exactMatch value is not boolean"),
        _boolean(readValue, "readValue value is not boolean"),
        _boolean(readAllTypes, "readAllTypes value is not boolean"),
    )


def _keys_only_reader(pattern, count=1000, noScan=False, patternGenerator=None, mode="async"):
    if patternGenerator is not None:
        _function(patternGenerator, "patternGenerator")
    pattern = bytes(pattern) if isinstance(pattern, bytes | bytearray) else _bytes(str(pattern))
    return ("keysonly", pattern, bool(noScan), str(count), patternGenerator)


def _stream_reader(arg, fromId="0-0", **_):
    if not isinstance(arg, str):
        raise error("regex argument must be a string")
    if not isinstance(fromId, str):
        raise error("fromId argument must be a string")
    return ("stream", _bytes(arg), fromId)


def _python_reader(arg):
    if arg is None:
        raise error("python reader function is not given")
    return ("python", _function(arg, "pyreader"))
