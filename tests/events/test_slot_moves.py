"""Slots that move to another shard while registrations are active on their keys."""

import pytest
from firing import wait_list
from registrations import register
from replies import own_tag
from wire import Wire

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
