"""The exceptions of the script environment, and how exceptions become texts."""

import sys
import traceback
import types

# Characters of a traceback list that are kept; the engine's own limit counts bytes of the final text.
_KEPT_CHARACTERS = 60_000


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
    return f"Error type: {_text_of(type(exception))}, Value: {_text_of(exception)}"


def _text_of(value):
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} str() failed>"


def _fit(lines):
    """Cuts a traceback so that the list form stays complete: clients parse it."""
    if sum(map(len, lines)) <= _KEPT_CHARACTERS:
        return lines
    longest = _KEPT_CHARACTERS // 4
    lines = [line if len(line) <= longest else _shorten(line, longest) for line in lines]
    if sum(map(len, lines)) <= _KEPT_CHARACTERS:
        return lines
    head, tail, room = [], [], _KEPT_CHARACTERS // 2
    front, back = 0, len(lines) - 1
    while front < back and room > 0:
        head.append(lines[front])
        tail.append(lines[back])
        room -= max(len(lines[front]), len(lines[back]))
        front, back = front + 1, back - 1
    cut = len(lines) - len(head) - len(tail)
    return head + [f"  ... {cut} lines cut ...\n"] + tail[::-1]


def _shorten(line, length):
    return f"{line[: length - 40]}... ({len(line)} characters, cut)\n"
