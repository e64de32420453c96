"""Events whose handlers are executions on all shards: many at once, and what waits for them."""

import threading

import pytest
from firing import counters, settled
from registrations import fired, register, status_of, wait_applied
from replies import executions_of, own_tag, wait_until
from wire import Simple, Wire, encode

# `EVENTS_SPREAD` in the table of bounds.
WINDOW = 1000
BURST = 15_000
# For all of it on a machine that has other things to do. It only guards against hanging.
OVER_S = 180.0


def waiting(wire):
    lines = wire.ok("INFO", "rg").decode().split("\r\n")
    return int(dict(line.split(":", 1) for line in lines if ":" in line)["rg_events_waiting"])


def burst(server, tag, count):
    """Sends it in parts of which each is more than what is under way at once."""
    size = 2 * WINDOW + 500
    with Wire(server.port) as wire:
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            wire.send_raw(b"".join(encode(("SET", f"k{{{tag}}}{number}", "v")) for number in numbers))
            assert [wire.read() for _ in numbers] == [Simple("OK")] * len(numbers)


def test_a_burst_on_all_shards(cluster, wires):
    """More than the links between the shards could take at once."""
    tags = [own_tag(server) for server in cluster.servers]
    register(
        wires[0], "GB().foreach(lambda x: execute('incr', 'n{%s}' % hashtag())).register('k*', eventTypes=['set'])"
    )
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])
    parts = [
        threading.Thread(target=burst, args=(server, tag, BURST))
        for server, tag in zip(cluster.servers, tags, strict=True)
    ]
    for part in parts:
        part.start()
    seen = 0
    while any(part.is_alive() for part in parts):
        # Who asks meanwhile is served.
        results, errors = wires[0].ok("RG.PYEXECUTE", "GB('ShardsIDReader').count().run()")
        assert (results, errors) == ([b"3"], [])
        seen = max(seen, *map(waiting, wires))
    assert seen > 0
    for wire in wires:
        settled(wire, OVER_S)
        assert counters(wire) == (BURST, BURST, 0, 0)
        assert waiting(wire) == 0
    counts = [wire.ok("GET", f"n{{{tag}}}") for wire, tag in zip(wires, tags, strict=True)]
    assert counts == [str(BURST).encode()] * 3
    for wire in wires:
        wire.ok("FLUSHALL")


@pytest.mark.parametrize("mode", ["async", "async_local"])
def test_what_is_over_can_be_aborted(cluster, wires, mode):
    """Other shards, which have dropped their parts, have nothing against it."""
    register(wires[0], f"GB().map(lambda x: x['key']).register('k*', mode={mode!r}, eventTypes=['set'])")
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])
    wires[0].ok("SET", f"k{{{own_tag(cluster.servers[0])}}}", "v")
    settled(wires[0])
    (execution,) = executions_of(wires[0])
    assert wires[0].call("RG.ABORTEXECUTION", execution) == Simple("OK")
    assert counters(wires[0]) == (1, 1, 0, 0)


def test_handlers_that_wait_for_later_ones(cluster, wires):
    """More of them than are under way at once."""
    server, wire = cluster.servers[0], wires[0]
    tag, count = own_tag(server), WINDOW + 500
    register(
        wire,
        f"""
import asyncio
async def wait(x):
    while execute('exists', 'last{{{tag}}}') == 0:
        await asyncio.sleep(0.5)
GB().foreach(wait).register('k{{{tag}}}*', eventTypes=['set'])
GB().foreach(lambda x: execute('set', 'last{{{tag}}}', 'v')).register('last-event{{{tag}}}', eventTypes=['set'])
""",
    )
    for number in range(count):
        wire.send("SET", f"k{{{tag}}}{number}", "v")
    assert [wire.read() for _ in range(count)] == [Simple("OK")] * count
    wire.ok("SET", f"last-event{{{tag}}}", "v")
    settled(wire, OVER_S)
    assert [counters(wire, number) for number in range(2)] == [(count, count, 0, 0), (1, 1, 0, 0)]
    for one in wires:
        one.ok("FLUSHALL")


@pytest.mark.parametrize("way", ["unregister", "abort", "upgrade"])
def test_what_waits_for_a_registration_that_goes(cluster, wires, way):
    """It runs, unless it is to be aborted: for longer than other shards remember the registration."""
    server, wire = cluster.servers[0], wires[0]
    tag, count = own_tag(server), WINDOW + 1500
    script = f"""
import time
def handle(x):
    time.sleep(0.01)
    execute('incr', 'handled{{{tag}}}')
GB().foreach(handle).register('k{{{tag}}}*', eventTypes=['set'])
"""
    register(wire, script, "ID", "s")
    wait_applied(cluster.servers, status_of(server)["applied"])
    burst(server, tag, count)
    assert waiting(wire) > 0
    (row,) = wire.ok("RG.DUMPREGISTRATIONS")
    if way == "upgrade":
        register(wire, script.replace("0.01", "0"), "ID", "s", "UPGRADE")
    else:
        wire.ok("RG.UNREGISTER", row[1], *["ABORTPENDING"] * (way == "abort"))

    # Those of the registration that has gone are listed until they are over.
    wait_until(lambda: waiting(wire) == 0 and not fired(wire), "all of them being over", OVER_S)
    handled = int(wire.ok("GET", f"handled{{{tag}}}") or 0)
    assert handled == count if way == "unregister" else handled < count
    for one in wires:
        one.ok("FLUSHALL")
