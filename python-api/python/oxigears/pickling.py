"""How functions and odd values travel between shards.

Functions of a script refer to the globals of their session on whatever shard they are loaded. Names of the base
environment never travel: each shard has its own.
"""

import io
import pickle
import threading
import types
import typing

from oxigears import cloudpickle, errors

_PROTOCOL = 5
_ABSENT = object()
# where the arguments of `_make_skeleton_class` have the bases, and what the class body begins with
_BASES = 2
_TYPE_KWARGS = 3

# globals of the session that this thread loads functions for
_loading = threading.local()

# Filled by the environment: names that every shard has.
base_names = {}


class SessionPickler(cloudpickle.Pickler):
    """Pickles functions of one session so that they find that session's globals again."""

    def __init__(self, file, session_globals):
        super().__init__(file, protocol=_PROTOCOL)
        self._session_globals = session_globals

    def reducer_override(self, obj):
        reduced = super().reducer_override(obj)
        # Slots must be slots on every shard: instances with and without them have different states.
        if isinstance(reduced, tuple) and reduced[0] is cloudpickle._make_skeleton_class:
            names = vars(obj).get("__slots__", _ABSENT)
            # NamedTuple gives its classes theirs, and takes none.
            if names is not _ABSENT and typing.NamedTuple not in reduced[1][_BASES]:
                reduced[1][_TYPE_KWARGS]["__slots__"] = names
        return reduced

    def _dynamic_function_reduce(self, func):
        if func.__globals__ is not self._session_globals:
            return super()._dynamic_function_reduce(func)
        closure = func.__closure__
        if closure is not None:
            # Filled after the function exists: a function may refer to itself.
            closure = tuple(cloudpickle._make_empty_cell() for _ in closure)
        return (
            _make_session_function,
            (func.__code__, closure),
            _session_function_state(func),
            None,
            None,
            _set_session_function_state,
        )


def _session_function_state(func):
    state, slots = cloudpickle._function_getstate(func)
    slots["__globals__"] = {
        name: value for name, value in slots["__globals__"].items() if base_names.get(name, _ABSENT) is not value
    }
    return state, slots


def _make_session_function(code, closure):
    return types.FunctionType(code, _loading.session_globals, None, None, closure)


def _set_session_function_state(func, state):
    attributes, slots = state
    func.__dict__.update(attributes)
    names = func.__globals__
    for name, value in slots.pop("__globals__").items():
        # What is there already is shared and kept; names of the base environment may be shadowed.
        known = names.get(name, _ABSENT)
        if known is _ABSENT or known is base_names.get(name, _ABSENT):
            names[name] = value
    closure = slots.pop("__closure__")
    # Were imported by unpickling them, which is all they are for.
    slots.pop("_cloudpickle_submodules")
    for place, cell in zip(func.__closure__ or (), closure or (), strict=True):
        try:
            place.cell_contents = cell.cell_contents
        except ValueError:
            continue  # an empty cell
    for name, value in slots.items():
        setattr(func, name, value)


def dumps(value, session_globals):
    """Pickles one value."""
    with io.BytesIO() as file:
        SessionPickler(file, session_globals).dump(value)
        return file.getvalue()


class Opaque:
    """Stands for a result that can not be pickled; it never left its shard."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


def dumps_result(value, session_globals):
    """Pickles a result, which only this shard's client sees."""
    try:
        return dumps(value, session_globals)
    except errors.forcestopped:
        raise
    except Exception:
        return dumps(Opaque(f"<{type(value).__name__} object>"), session_globals)


def loads(data, session_globals):
    """Loads what `dumps` or `dumps_functions` made, into the session with these globals."""
    before = getattr(_loading, "session_globals", None)
    _loading.session_globals = session_globals
    try:
        return pickle.loads(data)
    finally:
        _loading.session_globals = before


def dumps_functions(functions, session_globals):
    """Pickles a function table as one; names the function that fails."""
    try:
        return dumps(functions, session_globals)
    except errors.forcestopped:
        raise
    except BaseException as failure:
        # Code of the script runs here (`__reduce__`, `__str__`) and may even end the program.
        text, name = errors.text_of(failure), "?"
        for function in functions:
            try:
                dumps(function, session_globals)
            except errors.forcestopped:
                raise
            except BaseException as own_failure:
                text, name = errors.text_of(own_failure), _name(function)
                break
    raise errors.error(f"Error occured when serialized a python callback, callback={name} error={text}")


def _name(function):
    # `func`: the function inside functools.partial
    for named in (function, getattr(function, "func", None), type(function)):
        name = getattr(named, "__name__", None)
        if isinstance(name, str):
            return name
    return "?"
