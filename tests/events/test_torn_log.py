"""An AOF that a crash has cut off inside a transaction: nothing of it comes back, and what follows is not lost."""

from pathlib import Path

import pytest
from replies import wait_until
from wire import Wire, encode

AOF = ("--appendonly", "yes", "--appendfsync", "always")
TORN = encode(("MULTI",)) + encode(("INCR", "n")) + encode(("SET", "k", "v" * 20))
# Within the last command, between two of them, within the first one.
CUTS = {
    "in the value": TORN[:-4],
    "in the name": TORN[: TORN.index(b"SET") + 1],
    "in the head": TORN[: TORN.index(b"*3") + 1],
    "between two": TORN[: TORN.index(b"*3")],
    "in the beginning": TORN[:3],
}


def newest_file(server):
    files = Path(server.dir).glob("*/*.incr.aof")
    return max(files, key=lambda path: int(path.name.split(".")[-3]))


def crash(server, tail=b""):
    """Ends it at once; the last write of the AOF was `tail`."""
    server.kill()
    with open(newest_file(server), "ab") as file:
        file.write(tail)
    server.start()


@pytest.mark.matrix
@pytest.mark.parametrize("rewritten", [False, True], ids=["first file", "later file"])
@pytest.mark.parametrize("cut", CUTS)
def test_what_was_cut_off_does_not_come_back(fresh, cut, rewritten):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        wire.ok("SET", "before", "1")
        if rewritten:
            wire.call("BGREWRITEAOF")
            wait_rewritten(wire)
    crash(server, CUTS[cut])
    for turn in range(1, 4):
        with Wire(server.port) as wire:
            assert wire.ok("EXISTS", "n", "k") == 0
            assert wire.ok("GET", "before") == b"1"
            # Alone, and in a transaction, whose end would be that of the one that was cut off.
            assert wire.ok("INCR", "plain") == turn
            wire.ok("MULTI")
            wire.ok("INCR", "whole")
            assert wire.ok("EXEC") == [turn]
            wire.ok("INCR", "after")
        crash(server)
    with Wire(server.port) as wire:
        assert wire.ok("MGET", "plain", "whole", "after") == [b"3", b"3", b"3"]


@pytest.mark.matrix
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--appendfilename", "my log.aof"),
        ("--appendfilename", 'l\u00f6g"s.aof', "--appenddirname", "a log"),
        ("--aof-use-rdb-preamble", "no", "--aof-timestamp-enabled", "yes"),
        ("--rename-command", "CONFIG", ""),
    ],
    ids=["plain", "blank", "quotes", "timestamps", "no CONFIG"],
)
def test_what_follows_is_not_lost(fresh, more):
    """No other transaction ends the one that was cut off."""
    server = fresh(server_args=(*AOF, *more))
    with Wire(server.port) as wire:
        wire.ok("SET", "before", "1")
    crash(server, CUTS["in the value"])
    for turn in range(1, 3):
        with Wire(server.port) as wire:
            assert wire.ok("INCR", "plain") == turn
        crash(server)
    with Wire(server.port) as wire:
        assert wire.ok("MGET", "before", "plain", "n") == [b"1", b"2", None]


def wait_rewritten(wire):
    wait_until(lambda: b"aof_rewrite_in_progress:0" in wire.ok("INFO", "persistence"), "the rewrite")
