"""A client that shows replies as they are on the wire: a simple string is not a bulk string, an error keeps its code.

Sending and reading are apart, so that a test can leave a command waiting, do something else and read the reply later.
"""

import dataclasses
import select
import socket
import time

HANG_GUARD_S = 120.0


@dataclasses.dataclass(frozen=True)
class Simple:
    text: str


@dataclasses.dataclass(frozen=True)
class Error:
    text: str


class Incomplete(Exception):
    """The bytes so far end in the middle of a reply, which has at least `needed` bytes."""

    def __init__(self, needed):
        super().__init__(needed)
        self.needed = needed


def encode(args):
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


class Parser:
    """RESP2 and RESP3. A reply that breaks the protocol raises ValueError."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def line(self):
        end = self.data.find(b"\r\n", self.at)
        if end < 0:
            raise Incomplete(len(self.data) + 1)
        text = bytes(self.data[self.at : end])
        self.at = end + 2
        return text

    def block(self, size):
        if len(self.data) < self.at + size + 2:
            raise Incomplete(self.at + size + 2)
        data = bytes(self.data[self.at : self.at + size])
        if self.data[self.at + size : self.at + size + 2] != b"\r\n":
            raise ValueError(f"a bulk string of {size} bytes does not end where it should")
        self.at += size + 2
        return data

    def items(self, count):
        return [self.value() for _ in range(count)]

    def value(self):
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind in b"+-" and kind:
            text = rest.decode("utf-8", "replace")
            return Simple(text) if kind == b"+" else Error(text)
        if kind in (b":", b"("):
            return int(rest)
        if kind in (b"$", b"=", b"!"):
            return None if rest == b"-1" else self.block(int(rest))
        if kind in (b"*", b">"):
            return None if rest == b"-1" else self.items(int(rest))
        if kind == b"%":
            flat = self.items(2 * int(rest))
            return {_hashable(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
        if kind == b"~":
            return {_hashable(item) for item in self.items(int(rest))}
        if kind == b"_":
            return None
        if kind == b"#":
            return rest == b"t"
        if kind == b",":
            return float(rest)
        raise ValueError(f"not a reply: {line[:60]!r}")


class Wire:
    """One connection."""

    def __init__(self, port, host="127.0.0.1"):
        self.socket = socket.create_connection((host, port), timeout=HANG_GUARD_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, *args):
        self.socket.sendall(encode(args))

    def send_raw(self, data):
        self.socket.sendall(data)

    def _parse(self):
        parser = Parser(self.buffer)
        value = parser.value()
        del self.buffer[: parser.at]
        return value

    def read(self, timeout=HANG_GUARD_S):
        """The next reply. TimeoutError if none comes, ConnectionError if the server hangs up."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._parse()
            except Incomplete as incomplete:
                needed = incomplete.needed
            # Each look starts from the beginning, so there must not be one for every few bytes of a large reply.
            while len(self.buffer) < needed:
                self._receive(deadline, timeout)

    def _receive(self, deadline, timeout):
        if not select.select([self.socket], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError(f"no reply within {timeout:g} s")
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.buffer += data

    def has_reply(self, within=0.0):
        """Whether something has arrived that was not read yet, or does within so many seconds."""
        return bool(self.buffer or select.select([self.socket], [], [], within)[0])

    def call(self, *args, timeout=HANG_GUARD_S):
        self.send(*args)
        return self.read(timeout)

    def ok(self, *args, timeout=HANG_GUARD_S):
        """The reply, which must not be an error."""
        reply = self.call(*args, timeout=timeout)
        assert not isinstance(reply, Error), f"{args[0]} answered the error {reply.text!r}"
        return reply

    def error(self, *args, timeout=HANG_GUARD_S):
        """The text of the reply, which must be an error."""
        reply = self.call(*args, timeout=timeout)
        assert isinstance(reply, Error), f"{args[0]} answered {reply!r} and not an error"
        return reply.text
