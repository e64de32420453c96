"""A process of its own that sends one command at a fixed rate over many connections and times each reply.

Run by trigger_half.py as `pacer.py PORT RATE SECONDS REPLY COMMAND...`. Command number i is due at i / RATE, whether or
not earlier ones have been answered, and its time counts from when it was due: a server that falls behind shows in full.
What each reply must be is given, so that counting bytes is enough. Prints one JSON line.
"""

import gc
import json
import select
import socket
import sys
import time
from array import array
from collections import deque

from pinger import summary

CONNECTIONS = 50
WARM_UP_S = 0.2
# Shorter waits would only turn this process into a rival of the server.
TICK_S = 0.0002
SILENCE_S = 30.0


class Connection:
    def __init__(self, port, reply):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reply = reply
        self.rest = b""
        self.due = deque()  # of what is not answered

    def receive(self, times):
        data = self.rest + self.socket.recv(65536)
        now = time.perf_counter()
        count, rest = divmod(len(data), len(self.reply))
        whole = len(data) - rest
        self.rest = data[whole:]
        if not data or data[:whole] != self.reply * count or not self.reply.startswith(self.rest):
            raise RuntimeError(f"an answer is {data[:200]!r} instead of {self.reply!r}")
        for _ in range(count):
            times.append((now - self.due.popleft()) * 1000)


def encoded(command):
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)


def run(connections, request, rate, seconds):
    """(times of the replies, how late each command was sent), in ms."""
    by_socket = {connection.socket: connection for connection in connections}
    sockets, total = list(by_socket), int(rate * seconds)
    times, late = array("d"), array("d")
    start, sent = time.perf_counter() + TICK_S, 0
    while len(times) < total:
        now = time.perf_counter()
        due = min(total, int((now - start) * rate) + 1) if now >= start else 0
        while sent < due:
            at = start + sent / rate
            connection = connections[sent % CONNECTIONS]
            connection.due.append(at)
            connection.socket.sendall(request)
            late.append((time.perf_counter() - at) * 1000)
            sent += 1
        readable, _, _ = select.select(sockets, [], [], TICK_S if sent < total else SILENCE_S)
        if not readable and sent == total:
            raise RuntimeError(f"{total - len(times)} answers are missing")
        for one in readable:
            by_socket[one].receive(times)
    return times, late, time.perf_counter() - start


def main():
    port, rate, seconds, reply, *command = sys.argv[1:]
    port, rate, seconds, reply = int(port), float(rate), float(seconds), reply.encode().decode("unicode_escape")
    connections = [Connection(port, reply.encode()) for _ in range(CONNECTIONS)]
    request = encoded([word.encode() for word in command])
    gc.disable()
    run(connections, request, rate, WARM_UP_S)
    times, late, took = run(connections, request, rate, seconds)
    print(json.dumps({**summary(times), "rate": len(times) / took, "late_p99": summary(late)["p99"]}), flush=True)


if __name__ == "__main__":
    main()
