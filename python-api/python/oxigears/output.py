"""`sys.stdout` and `sys.stderr` of scripts: lines of the server log."""

import codecs
import io
import os
import sys
import threading

import _oxigears

# An unfinished line is written when it has become this long.
_LONGEST_LINE = 16 * 1024


class _Bytes(io.RawIOBase):
    """What `sys.stdout.buffer` is: bytes of UTF-8 for a text stream."""

    def __init__(self, text):
        self._text = text
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        self._text.write(self._decode(data))
        return len(data)

    def flush(self):
        self._text.flush()


class LogWriter(io.TextIOBase):
    """A text stream that writes whole lines to the server log."""

    def __init__(self, level):
        self._level = level
        self._line = ""
        # Re-entrant: a finaliser that prints may run while this thread prints.
        self._lock = threading.RLock()
        self.buffer = _Bytes(self)

    @property
    def encoding(self):
        return "utf-8"

    @property
    def errors(self):
        return "replace"

    def writable(self):
        return True

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            lines = (self._line + text).split("\n")
            self._line = lines.pop()
            if len(self._line) > _LONGEST_LINE:
                lines.append(self._line)
                self._line = ""
        for line in lines:
            _oxigears.log(self._level, line)
        return len(text)

    def flush(self):
        with self._lock:
            line, self._line = self._line, ""
        if line:
            _oxigears.log(self._level, line)


def redirect():
    """Puts the writers in place; nobody types into a server."""
    sys.stdout = sys.__stdout__ = LogWriter("notice")
    sys.stderr = sys.__stderr__ = LogWriter("warning")
    sys.stdin = sys.__stdin__ = open(os.devnull, encoding="utf-8")
