"""Streams keep their order and lose no entry, in every mode. Long variant: OXIGEARS_STREAM_ENTRIES=1000000."""

import os

import pytest
from replies import wait_until
from streams import NOTE, data, fill, register, script, status, wait_length

ENTRIES = int(os.environ.get("OXIGEARS_STREAM_ENTRIES", "100000"))
# Only guards against hanging.
WAIT_S = 60 + ENTRIES / 1000

# Each entry is the one behind the last: none is lost, none comes twice.
ORDER = (
    "def check(x):\n"
    "    global last\n"
    "    n = int(x['value']['n'])\n"
    "    if n != last + 1: execute('rpush', 'wrong', '%s after %s' % (n, last))\n"
    "    last = n\n"
    "last = 0\n"
    "def note(n): execute('set', 'counted', last)\n"
)


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ("sync", "async_local", "async"))
def test_a_long_stream_in_order(wire, mode):
    """Half of it is there before, the other half is added while it is consumed."""
    half = ENTRIES // 2
    # A busy machine may take the interpreter's thread away for as long as scripts wait for it.
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 5000)
    fill(wire, "s1", 1, half)
    register(wire, ORDER + script("foreach(check).count().foreach(note)", "s*", mode=mode, batch=100, duration=100))
    fill(wire, "s1", half + 1, ENTRIES)
    wait_until(lambda: wire.ok("GET", "counted") == b"%d" % ENTRIES, "all entries", WAIT_S)
    wait_length(wire, "s1", 0)
    assert wire.ok("LRANGE", "wrong", 0, -1) == []
    fields = data(wire)
    assert fields["numFailures"] == fields["numAborted"] == 0
    assert fields["numTriggered"] == fields["numSuccess"] and status(wire) == "OK"


@pytest.mark.matrix
@pytest.mark.parametrize("how", ("transaction", "script"))
def test_what_a_transaction_adds_is_handled_within_it(cluster, wires, how):
    """However long that takes: its client sees all effects."""
    wire = wires[cluster.servers.index(cluster.owner("{s}1"))]
    slowly = "import time\n" + script(f"foreach(lambda x: time.sleep(0.003)).{NOTE}", "{s}*", mode="sync")
    register(wire, slowly.replace("'seen'", "'{s}seen'"))
    wanted = [b"%d-1" % number for number in range(1, 8)]
    if how == "transaction":
        wire.ok("MULTI")
        for one in wanted:
            wire.ok("XADD", "{s}1", one, "f", "v")
        wire.ok("EXEC")
        found = wire.ok("LRANGE", "{s}seen", 0, -1)
    else:
        program = "for _, id in ipairs(ARGV) do redis.call('XADD', KEYS[1], id, 'f', 'v') end"
        wire.ok("EVAL", program, 1, "{s}1", *wanted)
        found = wire.ok("LRANGE", "{s}seen", 0, -1)
    assert found == wanted


@pytest.mark.parametrize("mode", ("sync", "async_local"))
def test_many_registrations_of_a_stream_keep_what_the_slowest_one_needs(wire, mode):
    """How far all are is not asked after each batch then."""
    wire.ok("SET", "bad", "1")
    fails = f"foreach(lambda x: 1 / 0 if execute('exists', 'bad') else 0).{NOTE}"
    register(wire, script(fails, "s1", mode="async_local", onFailedPolicy="retry", onFailedRetryInterval=1))
    count = "foreach(lambda x: execute('incr', 'count'))"
    register(wire, "\n".join(script(count, prefix, mode=mode) for prefix in ("s1", "s*") * 10))
    fill(wire, "s1", 1, 50)
    wait_until(lambda: wire.ok("GET", "count") == b"1000", "the others")
    assert wire.ok("XLEN", "s1") == 50 and wire.ok("LLEN", "seen") == 0
    wire.ok("DEL", "bad")
    wait_length(wire, "s1", 0)
    assert wire.ok("LLEN", "seen") == 50
