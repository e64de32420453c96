"""Events that the server raises by itself, in the middle of a walk over its data: handlers wait until that is over."""

import threading

import pytest
from registrations import COUNTERS
from wire import Error, Simple, Wire, encode

OK = Simple("OK")
ROUNDS = 12
KEYS = 100
# What a handler does to the keys over which the server walks.
HARM = {
    "reads": "None",
    "deletes": "execute('del', *['k%d' % i for i in range(100)])",
    "flushes": "execute('flushall')",
}


def in_one_go(wire, commands):
    """Sends all before the first reply is read; gives the replies."""
    wire.send_raw(b"".join(encode(command) for command in commands))
    return [wire.read() for _ in commands]


def settled(wire):
    """The counters of the only registration, when nothing is under way any more."""
    (row,) = wire.ok("RG.DUMPREGISTRATIONS")
    found = dict(zip(row[7][::2], row[7][1::2], strict=True))
    return [found[name.encode()] for name in COUNTERS]


@pytest.mark.matrix
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("event", ("expired", "hexpired"))
def test_a_handler_changes_what_the_server_walks_over(fresh, event, harm):
    server = fresh(server_args=("--hz", "200"))
    with Wire(server.port) as wire, Wire(server.port) as other:
        if event == "hexpired" and isinstance(missing := wire.call("HPEXPIRE", "h", "1", "FIELDS", "1", "a"), Error):
            assert "unknown command" in missing.text, "fields of hashes expire from 7.4 on"
            return
        program = f"GB().foreach(lambda x: {HARM[harm]}).register('k*', mode='sync', eventTypes=['{event}'])"
        assert wire.ok("RG.PYEXECUTE", program) == OK
        for turn in range(ROUNDS):
            commands = []
            for i in range(KEYS):
                ttl = str(5 + i % 7)
                if event == "expired":
                    commands.append(("SET", f"k{i}", "v", "PX", ttl))
                else:
                    commands += [
                        ("DEL", f"k{i}"),
                        ("HSET", f"k{i}", "a", "1", "b", "2"),
                        ("HPEXPIRE", f"k{i}", ttl, "FIELDS", "1", "a"),
                        ("PEXPIRE", f"k{i}", str(6 + i % 5)),
                    ]
            in_one_go(wire, commands)
            # Until the server has seen to them all, by itself.
            deadline = threading.Event()
            for _ in range(2000):
                if not other.ok("DBSIZE"):
                    break
                deadline.wait(0.005)
            assert other.ok("DBSIZE") == 0, turn
        triggered, good, failed, aborted = settled(other)
        assert triggered == good > 0 and failed == aborted == 0


def test_a_handler_writes_while_the_server_evicts(fresh):
    """Redis 7.0 ends itself if something waits to be replicated when it makes room before a command."""
    args = "--maxmemory-policy volatile-random --appendonly yes --appendfsync no --enable-debug-command yes"
    server = fresh(server_args=args.split())
    with Wire(server.port) as wire:
        wire.ok("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        body = "execute('rpush', 'seen', x['key'])"
        program = f"GB().foreach(lambda x: {body}).register('k*', mode='sync', eventTypes=['expired'])"
        assert wire.ok("RG.PYEXECUTE", program) == OK
        for _ in range(ROUNDS):
            wire.ok("CONFIG", "SET", "maxmemory", "0")
            in_one_go(wire, [("SET", f"k{i}", "v" * 100, "PX", "1" if i < 10 else "100000") for i in range(KEYS)])
            used = next(line for line in wire.ok("INFO", "memory").split(b"\r\n") if line.startswith(b"used_memory:"))
            wire.ok("CONFIG", "SET", "maxmemory", int(used.split(b":")[1]) - 2000)
            # The time of the first ones is over by then, and they may have been evicted.
            threading.Event().wait(0.003)
            # It may find nothing more to evict.
            reply = in_one_go(wire, [("EXISTS", "k0"), ("SET", "kt", "v")])[1]
            assert reply == OK or reply.text.startswith("OOM ")
        triggered, good, failed, aborted = settled(wire)
        assert triggered == good > 0 and failed == aborted == 0
