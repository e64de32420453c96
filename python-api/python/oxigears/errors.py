"""The exceptions of the script environment, and how exceptions become texts."""

import sys
import traceback
import types

# Bytes of a traceback list that are kept; a little below the engine's own limit for texts.
_KEPT_BYTES = 60_000


class error(Exception):
    """Raised for every misuse of the interface and for failed commands; `redisgears.GearsError`."""


class flat_error(Exception):
    """An error whose text reaches the client bare; `redisgears.GearsFlatError`."""


class forcestopped(Exception):
    """Raised in running code by RG.ABORTEXECUTION; `redisgears.GearsForceStopped`."""


def _publish():
    # The printed names are gears.error and so on; the module makes the classes picklable by name.
    module = types.ModuleType("gears", "Exceptions of the script environment.")
    for exception in (error, flat_error, forcestopped):
        exception.__module__ = "gears"
        setattr(module, exception.__name__, exception)
    sys.modules["gears"] = module


_publish()


def describe(exception, attempt_traceback):
    """The text of an exception in error records and replies."""
    if isinstance(exception, flat_error):
        try:
            return str(exception)
        except Exception:
            pass
    elif attempt_traceback and exception.__traceback__ is not None:
        lines = traceback.format_exception(type(exception), exception, exception.__traceback__)
        return repr(_fit(lines))
    return f"Error type: {text_of(type(exception))}, Value: {text_of(exception)}"


def text_of(value):
    """`str(value)`, whatever its `__str__` does."""
    try:
        return str(value)
    except BaseException:
        return f"<{type(value).__name__} str() failed>"


def _size(line):
    return len(repr(line).encode("utf-8", "replace")) + len(", ")


def _fit(lines):
    """Cuts a traceback so that the list form stays complete: clients parse it."""
    if sum(map(len, lines)) < _KEPT_BYTES // 10 or sum(map(_size, lines)) <= _KEPT_BYTES:
        return lines
    lines = [line if _size(line) <= _KEPT_BYTES // 4 else _shorten(line) for line in lines]
    head, tail, room = [], [], _KEPT_BYTES
    front, back = 0, len(lines)
    while front < back and room > 0:
        # From both ends; the last line, which says what happened, first.
        if len(tail) <= len(head):
            back -= 1
            tail.append(lines[back])
            room -= _size(lines[back])
        else:
            head.append(lines[front])
            room -= _size(lines[front])
            front += 1
    cut = [f"  ... {back - front} lines cut ...\n"] if front < back else []
    return head + cut + tail[::-1]


def _shorten(line):
    # A character takes ten bytes in its longest escaped form.
    return f"{line[: _KEPT_BYTES // 50]}... ({len(line)} characters, cut)\n"
