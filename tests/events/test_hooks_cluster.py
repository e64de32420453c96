"""Command hooks whose functions run on every shard."""

import pytest
from firing import counters, settled
from registrations import MODES, register, status_of, wait_applied
from replies import own_tag
from wire import Simple

B = "GB('CommandReader')"
# One reply made of what each shard says.
TOGETHER = "collect().accumulate(lambda a, r: (a or []) + [r])"


def parts(mode):
    return 3 if mode == "async" else 1


def hook(cluster, wire, steps, name, mode):
    register(wire, f"{B}.{steps}.{TOGETHER}.register(hook={name!r}, mode={mode!r}, convertToStr=False)")
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_a_hook_is_not_for_what_its_own_function_does_on_any_shard(cluster, wires, mode):
    hook(cluster, wires[0], "map(lambda x: execute('ECHO', x[1]) + '!')", "echo", mode)
    for wire in wires:
        for word in "a", "b":
            assert wire.ok("ECHO", word) == [word.encode() + b"!"] * parts(mode)
    for wire in wires:
        settled(wire)
        # Nothing else has been hooked on the way.
        assert counters(wire) == (2, 2, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_hooked_write_writes_on_every_shard(cluster, wires, mode):
    tags = [own_tag(server) for server in cluster.servers]
    hook(cluster, wires[0], "map(lambda x: execute('SET', 'k{%s}' % hashtag(), x[2]))", "set", mode)
    for number, (wire, tag) in enumerate(zip(wires, tags, strict=True)):
        assert wire.ok("SET", f"any{{{tag}}}", number) == [b"OK"] * parts(mode)
        assert wire.ok("EXISTS", f"any{{{tag}}}") == 0
        there = [wire.ok("DBSIZE") for wire in wires]
        assert there == ([1, 1, 1] if mode == "async" else [1] * (number + 1) + [0] * (2 - number))
    for wire in wires:
        settled(wire)
        assert counters(wire) == (1, 1, 0, 0)
        wire.ok("FLUSHALL")


def test_another_hook_is_for_what_a_hooks_function_does(cluster, wires):
    """In mode `async`, too, on every shard."""
    register(
        wires[0],
        f"""
{B}.map(lambda x: call_next(x[1]) + '?').register(hook='echo', mode='sync', convertToStr=False)
{B}.map(lambda x: execute('ECHO', 'a') + '!').{TOGETHER}.register(hook='lolwut', mode='async', convertToStr=False)
""",
    )
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])
    for wire in wires:
        assert wire.ok("LOLWUT") == [b"a?!"] * 3
    for wire in wires:
        settled(wire)
        assert [counters(wire, number) for number in range(2)] == [(3, 3, 0, 0), (1, 1, 0, 0)]


def test_nothing_is_left_of_a_hook_that_has_gone(cluster, wires):
    hook(cluster, wires[0], "map(lambda x: execute('ECHO', x[1]) + '!')", "echo", "async")
    assert wires[1].ok("ECHO", "a") == [b"a!"] * 3
    (row,) = wires[0].ok("RG.DUMPREGISTRATIONS")
    assert wires[0].ok("RG.UNREGISTER", row[1]) == Simple("OK")
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])
    assert [wire.ok("ECHO", "a") for wire in wires] == [b"a"] * 3
