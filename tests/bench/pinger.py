"""A process of its own that PINGs every given port once a millisecond and keeps the latencies by phase.

Run by bench.py as `pinger.py PORT...`. It reads one line per phase change on standard input, answers each
with a line, and prints its statistics as one JSON line when the input ends. PINGs are sent on schedule
whether or not earlier ones have been answered, so a shard that stands still for 500 ms shows as 500 slow
answers and not as one.
"""

import json
import select
import socket
import sys
import time
from array import array
from collections import deque

INTERVAL_S = 0.001
MAX_CATCH_UP_S = 0.010  # after a longer delay of this process itself, missed PINGs are not sent at once


class Shard:
    def __init__(self, port):
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = deque()  # (time, phase) of the PINGs not yet answered
        self.latencies = {}  # phase -> array of ms
        self.refused = {}  # phase -> answers that were errors, as BUSY during a long script

    def ping(self, phase):
        self.sent.append((time.perf_counter(), phase))
        self.socket.sendall(b"PING\r\n")

    def receive(self):
        data = self.socket.recv(65536)
        now = time.perf_counter()
        if not data:
            raise ConnectionError(f"the server at port {self.port} closed the connection")
        errors = data.count(b"-")  # no answer holds a second one
        phase = self.sent[0][1]
        for _ in range(data.count(b"\n")):
            sent, phase = self.sent.popleft()
            self.latencies.setdefault(phase, array("d")).append((now - sent) * 1000)
        if errors:
            self.refused[phase] = self.refused.get(phase, 0) + errors


def summary(values):
    ordered = sorted(values)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"n": len(ordered), "p50": at(0.50), "p99": at(0.99), "max": ordered[-1]}


def run(shards, control):
    """Returns how late (ms) this process's own ticks were, by phase. That tells about the machine."""
    by_socket = {shard.socket: shard for shard in shards}
    phase = "start"
    lateness = {}
    due = time.perf_counter()
    open_input = True
    while open_input or any(shard.sent for shard in shards):
        now = time.perf_counter()
        if open_input and now >= due:
            lateness.setdefault(phase, array("d")).append((now - due) * 1000)
            for shard in shards:
                shard.ping(phase)
            due += INTERVAL_S
            if now - due > MAX_CATCH_UP_S:
                due = now + INTERVAL_S
            continue
        watched, wait = ([*by_socket, control], due - now) if open_input else (list(by_socket), None)
        readable, _, _ = select.select(watched, [], [], wait)
        for ready in readable:
            if ready is not control:
                by_socket[ready].receive()
                continue
            line = control.readline()
            if line:
                phase = line.decode().strip()
                print("ok", flush=True)
            else:
                open_input = False
    return lateness


def main():
    shards = [Shard(int(port)) for port in sys.argv[1:]]
    # Unbuffered, so that select sees every line that is still to be read.
    lateness = run(shards, open(0, "rb", buffering=0))
    report = {
        phase: {
            "late": summary(late),
            "shards": {
                shard.port: summary(shard.latencies[phase]) | {"refused": shard.refused.get(phase, 0)}
                for shard in shards
                if phase in shard.latencies
            },
        }
        for phase, late in lateness.items()
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
