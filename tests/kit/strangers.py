"""Connections to the mesh by somebody who does not belong to the cluster."""

import contextlib
import os
import select
import socket
import struct
import time
from pathlib import Path

HOST = "127.0.0.1"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
LISTENING = "0A"


def _listening():
    """Inode -> port of every listening TCP socket of this machine."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                found[fields[9]] = int(fields[1].rsplit(":", 1)[1], 16)
    return found


def listening_ports(server):
    """The TCP ports on which the process listens."""
    listening, ports = _listening(), set()
    folder = f"/proc/{server.pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"{folder}/{name}")
            if target.startswith("socket:["):
                ports.add(listening.get(target[len("socket:[") : -1]))
    return ports - {None}


def mesh_ports(server, own=()):
    """The ports on which the shard serves its peers."""
    return sorted(listening_ports(server) - {server.port, server.port + 10000, *own})


# --- HTTP/2 by hand ----------------------------------------------------------------------------------------------


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def _string(text):
    """A string of HPACK, without Huffman coding."""
    data = text if isinstance(text, bytes) else text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, out = len(data) - 127, b"\x7f"
    while rest >= 128:
        out += bytes([rest % 128 + 128])
        rest //= 128
    return out + bytes([rest]) + data


def headers(path, extra=()):
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *extra,
    ]
    # Literal fields that are not put into the table.
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def message(payload):
    """A gRPC message without compression."""
    return b"\x00" + struct.pack("!I", len(payload)) + payload


def call(path, payload=b"", extra=(), stream=1, end=True):
    """The frames of one gRPC call."""
    body = frame(DATA, message(payload), END_STREAM if end else 0, stream)
    return frame(HEADERS, headers(path, extra), END_HEADERS, stream) + body


# --- protobuf by hand --------------------------------------------------------------------------------------------


def varint(number):
    out = b""
    while number >= 128:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value if isinstance(value, bytes) else value.encode()
    return varint(number << 3 | 2) + varint(len(data)) + data


# --- connections -------------------------------------------------------------------------------------------------


class Stranger:
    """One connection to a port of the mesh."""

    def __init__(self, port, wrap=None):
        self.socket = socket.create_connection((HOST, port), timeout=10)
        if wrap:
            self.socket = wrap(self.socket)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """Sends what the other side takes; it may hang up at any time."""
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def received(self, seconds=2.0):
        """Everything that comes until the other side hangs up or falls silent."""
        data, deadline = b"", time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                break
            try:
                part = self.socket.recv(1 << 16)
            except OSError:
                break
            if not part:
                break
            data += part
        return data
