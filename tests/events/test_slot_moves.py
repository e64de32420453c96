"""Slots that move to another shard while registrations are active on their keys."""

import pytest
from firing import wait_list
from localcluster import key_slot
from moving import Move
from registrations import register
from replies import own_tag, wait_until
from wire import Simple, Wire

NOTES = """
GB().foreach(lambda x: None).register('*', mode='sync')
GB('StreamReader').foreach(lambda x: execute('rpush', 'seen{%(tag)s}', x['id'])).register(
    's{%(tag)s}', batch=100, duration=2000, mode=%(mode)r)
"""


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_entries_that_wait_run_at_the_new_owner(cluster, wires, mode):
    """A sync handler is for the keys as well: that must not keep them from moving."""
    source, target = cluster.servers[:2]
    tag = own_tag(source)
    register(wires[0], NOTES % {"tag": tag, "mode": mode})
    slot = wires[0].ok("CLUSTER", "KEYSLOT", tag)
    for number in range(1, 4):
        wires[0].ok("XADD", f"s{{{tag}}}", f"1-{number}", "f", "v")
    cluster.move_slots([slot], source, target)
    try:
        with Wire(target.port) as wire:
            wait_list(wire, ["1-1", "1-2", "1-3"], f"seen{{{tag}}}")
            wire.ok("DEL", f"seen{{{tag}}}", f"s{{{tag}}}")
    finally:
        cluster.move_slots([slot], target, source)
        cluster.wait_cluster_ok()


def test_sync_code_uses_a_slot_that_comes_for_a_client_that_asks(cluster, wires):
    source, target = cluster.servers[:2]
    tag = own_tag(source)
    register(
        wires[0],
        f"""
GB().foreach(lambda x: execute('rpush', 'seen{{{tag}}}', x['key'])).register('k*', eventTypes=['set'], mode='sync')
GB('CommandReader').map(lambda x: execute('incr', 'n{{{tag}}}') and call_next(*x[1:])).register(
    hook='get', keyprefix='k', mode='sync')
GB('CommandReader').map(lambda x: execute('append', x[1], x[2])).register(trigger='t', mode='sync')
""",
    )
    keys = [f"{name}{{{tag}}}" for name in ("k", "seen", "n")]
    with Move(cluster, source, target, tag), Wire(target.port) as wire:
        for command, reply in (
            (("SET", keys[0], "v"), Simple("OK")),
            (("GET", keys[0]), b"v"),
            (("LRANGE", keys[1], 0, -1), [keys[0].encode()]),
            (("GET", keys[2]), b"1"),
            (("RG.TRIGGERONKEY", "t", keys[0], "w"), [b"2"]),
            (("GET", keys[0]), b"vw"),
        ):
            wire.ok("ASKING")
            assert wire.ok(*command) == reply
    for key in keys:
        wires[0].ok("DEL", key)


TAGS = """
GB('CommandReader').map(lambda x: hashtag()).register(trigger='tag', mode=%(mode)r)
GB().foreach(lambda x: execute('rpush', 'seen{%%s}' %% hashtag(), x['key'])).register(
    'k*', eventTypes=['set'], mode=%(mode)r)
"""


@pytest.mark.parametrize("mode", ["sync", pytest.param("async_local", marks=pytest.mark.matrix)])
def test_hashtag_follows_the_lowest_slot(cluster, wires, mode):
    """While that one moves away it refuses new keys: no event may be lost for it."""
    (source, target), wire = cluster.servers[:2], wires[0]
    stays = next(str(n) for n in range(10**5) if 1000 < key_slot(b"%d" % n) < 5000)
    register(wire, TAGS % {"mode": mode})
    # It may have come back from another test a moment ago.
    wait_until(lambda: wire.ok("RG.TRIGGER", "tag") == [b"06S"], "the lowest slot")
    with Move(cluster, source, target, "06S") as move:
        (tag,) = wire.ok("RG.TRIGGER", "tag")
        assert key_slot(tag) == 1
        seen = b"seen{%s}" % tag
        wire.ok("SET", f"k1{{{stays}}}", "v")
        wait_list(wire, [f"k1{{{stays}}}"], seen)
        move.finish()
        # At once: what was known a moment ago is wrong.
        wire.ok("SET", f"k2{{{stays}}}", "v")
        assert wire.ok("RG.TRIGGER", "tag") == [tag]
        wait_list(wire, [f"k1{{{stays}}}", f"k2{{{stays}}}"], seen)
        wait_until(lambda: wires[1].ok("RG.TRIGGER", "tag") == [b"06S"], "the new owner seeing it")
    wait_until(lambda: wire.ok("RG.TRIGGER", "tag") == [b"06S"], "the slot being back")
    wire.ok("DEL", seen)
    wire.ok("DEL", f"k1{{{stays}}}", f"k2{{{stays}}}")
