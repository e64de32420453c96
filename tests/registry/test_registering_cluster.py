"""Registering on three shards: on all or on none, seen by all when the client has its OK."""

import localcluster
import pytest
from breaking import no_crash
from registrations import (
    NOT_FOUND,
    dump,
    refusals_of,
    register,
    sessions,
    simple_trigger,
    state,
    trigger,
    wait_equal,
)
from replies import own_tag, wait_until
from wire import Error, Simple, Wire

B = "GB('CommandReader')"
ROUNDS = 40
# A global that only the shard with this tag can load.
ODD = """
def load(tag):
    if hashtag() != tag:
        raise ValueError('only loaded on one shard')
    return 1
class Odd:
    def __reduce__(self):
        return load, (%r,)
odd = Odd()
GB('CommandReader').map(lambda x: odd).register(trigger=%r)
"""
# A global that the shard with this tag loads when there is no file of this name.
SLOW = """
import os, time
def load(tag, path):
    while hashtag() == tag and os.path.exists(path):
        time.sleep(0.01)
class Slow:
    def __reduce__(self):
        return load, (%r, %r)
slow = Slow()
GB('CommandReader').map(lambda x: (slow, 'yes')[1]).register(trigger='slow', mode='sync')
"""


def test_ok_means_that_all_shards_have_it(cluster, wires):
    for i in range(ROUNDS):
        here, others = wires[i % 3], [wire for wire in wires if wire is not wires[i % 3]]
        register(here, simple_trigger(f"t{i}", f"v{i}"))
        for wire in (*others, here):
            assert trigger(wire, f"t{i}") == [b"v%d" % i], "a shard did not know it when the client had its OK"
        assert len({tuple(dump(wire)) for wire in wires}) == 1


def test_ok_means_that_no_shard_has_it_any_more(wires):
    for i in range(ROUNDS):
        register(wires[i % 3], simple_trigger("t", i))
        (one,) = dump(wires[(i + 1) % 3])
        assert wires[(i + 1) % 3].call("RG.UNREGISTER", one) == Simple("OK")
        for wire in wires:
            assert trigger(wire, "t") == Error(NOT_FOUND), "a shard still had it when the client had its OK"
            assert dump(wire) == {} and sessions(wire) == {}


def test_ok_means_that_all_shards_have_the_new_version(wires):
    for i in range(ROUNDS):
        register(wires[i % 3], simple_trigger("t", f"v{i}"), "ID", "s", "UPGRADE")
        for wire in wires:
            assert trigger(wire, "t") == [b"v%d" % i]


def test_the_order_is_the_same_everywhere(cluster, wires):
    """Scripts of all shards at once; every shard lists what they made in one order."""
    for turn in range(10):
        for i, wire in enumerate(wires):
            wire.send(
                "RG.PYEXECUTE", "\n".join(simple_trigger(f"t{turn}-{i}-{j}") for j in range(3)), "ID", f"s{turn}-{i}"
            )
        for wire in wires:
            assert wire.read() == Simple("OK")
    found = wait_equal(cluster.servers)
    assert len(found[0]) == 90 and len(found[1]) == 30
    assert [row[0] for row in found[1]] == sorted(row[0] for row in found[1])


def test_one_of_those_who_want_a_name_gets_it(cluster, wires):
    """As many clients on every shard, with one trigger and with one session name."""
    clients = [(i, Wire(server.port)) for i, server in enumerate(cluster.servers * 2)]
    try:
        for turn in range(15):
            for i, client in clients:
                name = f"s{turn}" if turn % 2 else f"s{turn}-{i}"
                which = f"t{turn}-{i}" if turn % 2 else f"t{turn}"
                client.send("RG.PYEXECUTE", simple_trigger(which, f"by {i}"), "ID", name)
            replies = {i: client.read() for i, client in clients}
            (winner,) = [i for i, reply in replies.items() if reply == Simple("OK")]
            for i, reply in replies.items():
                if i != winner:
                    text = " ".join(refusals_of(reply))
                    assert f"Session s{turn} already exists" in text or "trigger already registered" in text, text
            name = f"t{turn}-{winner}" if turn % 2 else f"t{turn}"
            for wire in wires:
                assert trigger(wire, name) == [b"by %d" % winner]
    finally:
        for _, client in clients:
            client.close()
    assert len(wait_equal(cluster.servers)[0]) == 15


@pytest.mark.parametrize("options", [[], ["ID", "s", "UPGRADE"]], ids=["create", "upgrade"])
def test_a_function_that_one_shard_cannot_load_is_refused_everywhere(cluster, wires, options):
    register(wires[1], simple_trigger("t", "old"), "ID", "s")
    before = [wire.ok("RG.DUMPREGISTRATIONS") for wire in wires]
    for i, server in enumerate(cluster.servers):
        others = [other.node_id for other in cluster.servers if other is not server]
        name = "t" if options else "new"
        script = simple_trigger("fine") + ODD % (own_tag(server), name)
        texts = refusals_of(wires[i].call("RG.PYEXECUTE", script, *options))
        assert all(text.startswith("ERR shard-") and "only loaded on one shard" in text for text in texts), texts
        assert sorted(text[len("ERR shard-") :][:40] for text in texts) == sorted(others)
    assert [wire.ok("RG.DUMPREGISTRATIONS") for wire in wires] == before
    for wire in wires:
        assert trigger(wire, "t") == [b"old"]
        assert trigger(wire, "fine") == trigger(wire, "new") == Error(NOT_FOUND)


def test_functions_that_take_long_to_load_keep_no_others_from_being_refused(cluster, wires, tmp_path):
    blocker = tmp_path / "blocker"
    blocker.write_text("")
    register(wires[0], SLOW % (own_tag(cluster.servers[1]), str(blocker)))
    texts = refusals_of(wires[0].call("RG.PYEXECUTE", ODD % (own_tag(cluster.servers[0]), "odd")))
    others = [server.node_id for server in cluster.servers[1:]]
    assert sorted(text[len("ERR shard-") :][:40] for text in texts) == sorted(others)
    blocker.unlink()
    for wire in wires:
        wait_until(lambda wire=wire: trigger(wire, "slow") == [b"yes"], "the function being loaded")


def test_a_refusal_comes_as_a_list(wires):
    reply = wires[0].call("RG.PYEXECUTE", ODD % ("nowhere", "t"))
    assert isinstance(reply, list) and len(reply) >= 2
    assert all(isinstance(one, Error) and one.text.startswith("ERR shard-") for one in reply)


def test_ids_are_unique_and_rise_on_every_shard(wires):
    numbers = {}
    for i in range(30):
        wire = wires[i % 3]
        register(wire, simple_trigger("t", i), "ID", "s", "UPGRADE")
        (one,) = dump(wire)
        node, number = one[:40], int(one[41:])
        assert node == wire.ok("CLUSTER", "MYID")
        assert number not in numbers.values(), "a number was used twice"
        assert number > max(numbers.values(), default=-1)
        numbers[i] = number


def test_ids_of_scripts_at_once_are_unique(cluster, wires):
    for turn in range(10):
        for i, wire in enumerate(wires):
            wire.send("RG.PYEXECUTE", "\n".join(simple_trigger(f"{turn}-{i}-{j}") for j in range(5)))
        for wire in wires:
            assert wire.read() == Simple("OK")
    ids = [row[0] for row in wait_equal(cluster.servers)[0]]
    assert len(ids) == len(set(ids)) == 150


def test_the_function_of_a_new_session_is_loaded_with_its_globals(wires):
    script = f"""
import json
table = {{'a': 1}}
class Box:
    def __init__(self, n):
        self.n = n
    def get(self, key):
        return json.dumps([self.n, table.get(key)])
box = Box(7)
def use(x):
    return box.get(x[1])
{B}.map(use).register(trigger='use', mode='sync')
{B}.foreach(lambda x: table.update({{x[1]: 2}})).register(trigger='put', mode='sync')
"""
    register(wires[0], script)
    for wire in wires:
        assert trigger(wire, "use", "a") == [b"[7, 1]"]
        assert trigger(wire, "use", "b") == [b"[7, null]"]
        trigger(wire, "put", "b")
        assert trigger(wire, "use", "b") == [b"[7, 2]"]


def test_a_large_script(cluster, wires):
    """Some megabytes of constants; the trigger works on every shard, and the next change is quick again."""
    register(wires[0], f"text = 'x' * 5_000_000\n{B}.map(lambda x: len(text)).register(trigger='t', mode='sync')")
    for wire in wires:
        assert trigger(wire, "t") == [b"5000000"]
    register(wires[1], simple_trigger("u"))
    assert len(wait_equal(cluster.servers)[0]) == 2


def test_a_script_that_is_too_large(cluster, wires):
    before = state(cluster.servers[0])
    script = f"text = 'x' * 100_000_000\n{B}.map(lambda x: len(text)).register(trigger='t', mode='sync')"
    text = " ".join(refusals_of(wires[0].call("RG.PYEXECUTE", script)))
    assert "bytes" in text and "at most" in text
    assert state(cluster.servers[0]) == before
    register(wires[1], simple_trigger("u"))
    for wire in wires:
        assert trigger(wire, "u") == [b"1"]


@pytest.mark.parametrize(
    ("script", "most"),
    [
        ("GB().register('*', eventTypes=['e%d' % i for i in range(10_001)])", 10_000),
        ("for i in range(20_001): GB('CommandReader').register(trigger='y%d' % i)", 20_000),
    ],
)
def test_lists_that_are_too_long(cluster, wires, script, most):
    """Refused here, before others are asked, who could not read it."""
    (text,) = refusals_of(wires[0].call("RG.PYEXECUTE", script, timeout=120))
    assert f"{most + 1} are asked for, at most {most} are allowed" in text
    assert all(wire.ok("RG.DUMPREGISTRATIONS") == [] for wire in wires)


def test_a_script_does_not_hold_up_others_while_it_is_agreed_on(cluster, wires):
    """A trigger answers on every shard while registrations go on."""
    register(wires[0], simple_trigger("t"))
    for i in range(10):
        wires[0].send("RG.PYEXECUTE", simple_trigger(f"more{i}"))
        with Wire(cluster.servers[1].port) as other:
            while not wires[0].has_reply():
                assert trigger(other, "t") == [b"1"]
        assert wires[0].read() == Simple("OK")


def test_unregister_by_a_client_that_leaves(cluster, wires):
    register(wires[0], simple_trigger("t"))
    (one,) = dump(wires[0])
    with Wire(cluster.servers[1].port) as leaving:
        leaving.send("RG.UNREGISTER", one)
    for wire in wires:
        wait_until(lambda wire=wire: dump(wire) == {}, "the registration going away")
    with Wire(cluster.servers[1].port) as leaving:
        leaving.send("RG.PYEXECUTE", simple_trigger("t"))
    for wire in wires:
        wait_until(lambda wire=wire: trigger(wire, "t") == [b"1"], "the registration coming")


FUNCTION = """
def remove(x):
    gone = [row[1] for row in execute('RG.DUMPREGISTRATIONS') if row[5] == 'old']
    return [execute('RG.UNREGISTER', one) for one in gone]
"""


@pytest.mark.parametrize("where", ("body", "step", "sync", "async", "MULTI"))
def test_a_registration_is_removed_where_nobody_may_wait(wires, where):
    """As clients' libraries do it: a script removes the old registrations of its name, and makes new ones."""
    register(wires[0], "GB('CommandReader', desc='old').map(lambda x: 1).register(trigger='t')")
    new = "GB('CommandReader').map(lambda x: 2).register(trigger='u', mode='sync')"
    wire = wires[1]
    if where == "body":
        register(wire, f"{FUNCTION}remove(None)\n{new}")
        wait_until(lambda: trigger(wire, "u") == [b"2"], "the new one")
    elif where == "step":
        assert wire.ok("RG.PYEXECUTE", f"{FUNCTION}GB('PythonReader').map(remove).run(lambda: iter([1]))")[0]
    elif where == "MULTI":
        (one,) = dump(wire)
        wire.ok("MULTI")
        wire.call("RG.UNREGISTER", one)
        assert wire.ok("EXEC") == [Simple("OK")]
    else:
        mode = "async_local" if where == "async" else "sync"
        register(wire, f"{FUNCTION}GB('CommandReader').map(remove).register(trigger='remove', mode='{mode}')")
        assert trigger(wire, "remove") == [b"['OK']"]
    for each in wires:
        wait_until(lambda each=each: trigger(each, "t") == Error(NOT_FOUND), "the old one is gone")
    unknown = wire.error("RG.PYEXECUTE", "execute('RG.UNREGISTER', '0000-1')")
    assert "execution is not registered" in unknown


REPLACE = """
def replace(x):
    (gone,) = [row[1] for row in execute('RG.DUMPREGISTRATIONS') if row[5] == 'old']
    answer = execute('RG.UNREGISTER', gone)
    GB('CommandReader').map(lambda x: 'new').register(trigger='t', mode='sync')
    try:
        execute('RG.UNREGISTER', gone)
    except Exception as e:
        return [answer, str(e)]
"""


@pytest.mark.parametrize("where", ("body", "atomic", "sync", "async_local"))
def test_a_trigger_is_replaced_where_nobody_may_wait(wires, where):
    """The order counts, as on a server that is alone."""
    for _ in range(ROUNDS):
        old = "GB('CommandReader', desc='old').map(lambda x: 'old').register(trigger='t', mode='sync')"
        register(wires[0], old)
        wire = wires[1]
        if where == "body":
            register(wire, f"{REPLACE}replace(None)")
        elif where == "atomic":
            register(wire, f"{REPLACE}with atomic():\n    replace(None)")
        else:
            register(wire, f"{REPLACE}GB('CommandReader').map(replace).register(trigger='u', mode='{where}')")
            assert trigger(wire, "u") == [b"['OK', 'execution is not registered']"]
        for each in wires:
            wait_until(lambda each=each: trigger(each, "t") == [b"new"], "the new one")
        for one in dump(wire):
            assert wire.call("RG.UNREGISTER", one) == Simple("OK")


LOOKS = """
seen = []
async def look():
    seen.append(await GB('ShardsIDReader').count().run())
begin = lambda: runCoroutine(look())
GB('CommandReader').map(lambda x: str(seen)).register(trigger='seen', mode='sync', onRegistered=begin)
"""


def test_on_registered_reaches_all_shards_after_a_restart():
    """The links are not up yet when it is called: the execution waits for them."""
    with localcluster.LocalCluster(masters=3) as own:
        own.wait_mesh()
        first = own.servers[0]
        wanted = [b"[[['3'], []]]"]
        with Wire(first.port) as wire:
            register(wire, LOOKS)
            wait_until(lambda: trigger(wire, "seen") == wanted, "the shards being counted")
        first.restart()
        own.wait_cluster_ok()
        with Wire(first.port) as wire:
            # First triggers are refused, and then it has not looked yet.
            wait_until(lambda: isinstance(trigger(wire, "seen"), list), "the trigger")
            wait_until(lambda: trigger(wire, "seen") != [b"[]"], "it having looked")
            assert trigger(wire, "seen") == wanted
        no_crash(own.servers)
