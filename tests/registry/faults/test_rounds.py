"""1,000 rounds of register and unregister, and 10,000 registrations: nothing is left behind."""

from breaking import HEAL_S
from logs import wipe
from registrations import dump, register, sessions, simple_trigger, status_of, trigger, wait_equal, wait_group
from replies import wait_until
from wire import Error, Simple, Wire

WARM_UP = 200
ROUNDS = 1000
SAMPLE_EVERY = 50
# Allocators settle by whole pages; a registration that stays (its plan, its functions) has some thousand bytes.
SLOPE_BYTES = 3000
MANY = 10_000
# For 10,000 registrations of a small function, with what Python makes of them.
MANY_BYTES = 400_000_000


def slope(points):
    """Bytes a round, by least squares."""
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def one_round(wires, number):
    """Made through one shard, used on another one, removed through the third one."""
    maker, user, remover = (wires[(number + i) % len(wires)] for i in range(3))
    register(maker, simple_trigger("t", number), "ID", "s")
    assert trigger(user, "t") == [b"%d" % number]
    (one,) = dump(remover)
    assert remover.call("RG.UNREGISTER", one) == Simple("OK")


def test_a_thousand_rounds(trio):
    wires = [Wire(server.port) for server in trio.servers]
    try:
        for i in range(WARM_UP):
            one_round(wires, i)
        samples = {server: [] for server in trio.servers}
        for i in range(ROUNDS):
            one_round(wires, i)
            if i % SAMPLE_EVERY == 0:
                for server in trio.servers:
                    samples[server].append((i, server.rss_bytes()))
    finally:
        for wire in wires:
            wire.close()
    for server in trio.servers:
        found = slope(samples[server])
        assert found < SLOPE_BYTES, f"{server} grows by {found:.0f} bytes a round: {samples[server]}"
    assert wait_equal(trio.servers) == ([], [])
    # The log was cut meanwhile.
    for server in trio.servers:
        assert status_of(server)["diskBytes"] < 64_000_000
    wait_group(trio.servers)


def many(name):
    return f"""
def make(i):
    GB('CommandReader').map(lambda x: {name!r} + str(i)).register(trigger={name!r} + str(i), mode='sync')
for i in range({MANY}):
    make(i)
"""


def expect_many(server, name):
    with Wire(server.port) as wire:
        for i in range(0, MANY, MANY // 50):
            assert trigger(wire, f"{name}{i}") == [f"{name}{i}".encode()]
        found = sessions(wire)[b"many"]["registrations"]
        assert len(set(found)) == MANY
        return found


def test_ten_thousand_registrations(trio):
    before = {server: server.rss_bytes() for server in trio.servers}
    with Wire(trio.servers[0].port) as wire:
        register(wire, many("m"), "ID", "many")
    first = expect_many(trio.servers[0], "m")
    for server in trio.servers:
        assert expect_many(server, "m") == first
        grown = server.rss_bytes() - before[server]
        assert grown < MANY_BYTES, f"{server} has grown by {grown} bytes"
    # All at once, from the logs alone.
    for server in trio.servers:
        server.kill()
    for server in trio.servers:
        server.spawn()
    for server in trio.servers:
        server.wait_ready()
    trio.wait_cluster_ok(HEAL_S)
    wait_group(trio.servers, HEAL_S)
    for server in trio.servers:
        assert expect_many(server, "m") == first
    # A node that lost everything gets it as a snapshot.
    victim = trio.servers[2]
    victim.kill()
    wipe(victim)
    victim.start()
    trio.wait_cluster_ok(HEAL_S)
    wait_group(trio.servers, HEAL_S)
    assert expect_many(victim, "m") == first
    # And all of them are replaced by one in one step.
    with Wire(trio.servers[1].port) as wire:
        register(wire, simple_trigger("one"), "ID", "many", "UPGRADE")
    for server in trio.servers:
        with Wire(server.port) as wire:
            assert trigger(wire, "one") == [b"1"]
            assert isinstance(trigger(wire, "m5"), Error)
    wait_until(lambda: len(wait_equal(trio.servers)[0]) == 1, "one registration being left")
