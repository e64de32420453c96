"""Events in a cluster of three shards."""

import contextlib
import threading
import time

import localcluster
import pytest
from breaking import no_crash
from firing import counters, large_results, settled, wait_list
from registrations import register, status_of, wait_applied, wait_group
from replies import executions_of, own_tag, start, wait_done, wait_until
from wire import Error, Simple, Wire, encode


def owner_of(wires, key):
    """The place of the shard that takes writes of this key."""
    (found,) = [i for i, wire in enumerate(wires) if not isinstance(wire.call("EXISTS", key), Error)]
    return found


def everywhere(cluster, wires, script):
    register(wires[0], script)
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])


def test_l24_the_owner_is_the_initiator(cluster, wires):
    everywhere(
        cluster,
        wires,
        "GB().count().foreach(lambda n: execute('rpush', 'at{%s}' % hashtag(), n))"
        ".register('newk*', eventTypes=['set'])",
    )
    for number in range(6):
        key = f"newk{number}"
        owner = owner_of(wires, key)
        before = [counters(wire)[0] for wire in wires]
        wires[owner].ok("SET", key, "1")
        for wire in wires:
            settled(wire)
        after = [counters(wire)[0] for wire in wires]
        assert [b - a for a, b in zip(before, after, strict=True)] == [int(i == owner) for i in range(3)]
    tags = [
        wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: hashtag()).run(mode='async_local')")[0][0]
        for wire in wires
    ]
    lists = [wire.ok("LRANGE", b"at{%s}" % tag, 0, -1) for wire, tag in zip(wires, tags, strict=True)]
    assert sum(lists, []) == [b"1"] * 6


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_records_of_events(cluster, wires, mode):
    everywhere(
        cluster,
        wires,
        "GB().foreach(lambda x: execute('rpush', 'seen{%s}' % x['key'], repr(list(x.values()))))"
        f".register('k*', mode={mode!r}, eventTypes=['set', 'hset', 'del'])",
    )
    for key in ("k1", "k2", "k3"):
        wire = wires[owner_of(wires, key)]
        wire.ok("SET", key, "v")
        settled(wire)
        wire.ok("DEL", key)
        wait_list(wire, [f"['set', '{key}', 'string', 'v']", f"['del', '{key}', 'empty', None]"], "seen{%s}" % key)


def test_records_move_to_other_shards(cluster, wires):
    """Only global steps bring the others something."""
    everywhere(
        cluster,
        wires,
        "GB().flatmap(lambda x: ['to-%d' % i for i in range(12)]).repartition(lambda x: x)"
        ".foreach(lambda x: execute('incr', x)).register('k', eventTypes=['set'])",
    )
    wires[owner_of(wires, "k")].ok("SET", "k", "1")
    for number in range(12):
        key = f"to-{number}"
        wait_until(lambda key=key: wires[owner_of(wires, key)].ok("GET", key) == b"1", f"{key} being 1")


def test_chains_over_shards_end(cluster, wires):
    for wire in wires:
        wire.ok("RG.CONFIGSET", "MaxEventDepth", "8")
    everywhere(
        cluster,
        wires,
        "GB().map(lambda x: 'hop%d' % (int(x['key'][3:]) + 1)).repartition(lambda x: x)"
        ".foreach(lambda x: execute('set', x, '1')).register('hop*', eventTypes=['set'])",
    )
    wires[owner_of(wires, "hop0")].ok("SET", "hop0", "1")

    def over():
        counts = [counters(wire) for wire in wires]
        return sum(count[3] for count in counts) == 1 and all(count[0] == sum(count[1:]) for count in counts)

    wait_until(over, "the chain's end")
    assert sum(counters(wire)[1] for wire in wires) == 8


# A key of the first shard, and one of another slot of it.
FIRST, OTHER = "k:{06S}", "other:{3}"
FAR = "GB('KeysReader').foreach(lambda x: execute('RPUSH', 'other:{3}', x['value'])).register('k:*', mode='sync')"
WITHIN = {
    "alone": [("SET", FIRST, "1"), ("SET", FIRST, "2")],
    "transaction": [("MULTI",), ("SET", FIRST, "1"), ("EXEC",), ("SET", FIRST, "2")],
    "script": [("EVAL", "redis.call('SET', KEYS[1], '1')", "1", FIRST), ("SET", FIRST, "2")],
    "stream": [("XADD", "s:{06S}", "*", "f", "1"), ("XADD", "s:{06S}", "*", "f", "2")],
}


@pytest.mark.matrix
@pytest.mark.parametrize("way", WITHIN)
@pytest.mark.parametrize("link", [None, "sync", "async_local"])
def test_a_sync_handler_uses_a_key_of_another_slot(cluster, wires, way, link):
    """Newer servers look for all keys in the table of the command's slot while it runs. `link`: the client waits for
    what another registration does."""
    script = FAR
    if way == "stream":
        script = (
            "GB('StreamReader').foreach(lambda x: execute('RPUSH', 'other:{3}', x['value']['f']))"
            ".register('s:*', mode='sync')"
        )
    wire = wires[owner_of(wires, FIRST)]
    assert owner_of(wires, OTHER) == wires.index(wire)
    if link:
        script += f"\nGB().foreach(lambda x: None).register('*', commands=['set', 'xadd'], mode={link!r})"
    everywhere(cluster, wires, script)
    for command in WITHIN[way]:
        wire.ok(*command)
    # At once: the handler is over before the reply.
    assert wire.ok("LRANGE", OTHER, "0", "-1") == [b"1", b"2"]
    assert counters(wire)[2:] == (0, 0)


@pytest.mark.matrix
def test_a_handler_of_what_code_within_a_command_writes_uses_a_key_of_another_slot(cluster, wires):
    """A hook's call of its command, and a trigger in a transaction or a script, fire when the client's command ends."""
    wire = wires[owner_of(wires, FIRST)]
    code = """
GB('KeysReader').foreach(lambda x: execute('RPUSH', 'other:{3}', x['event'])).register('k:*', mode='sync')
GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='HSET', keyprefix='k:', mode='sync')
GB('CommandReader').map(lambda x: execute('SET', x[1], '2')).register(trigger='near', mode='sync')
"""
    everywhere(cluster, wires, code)
    wire.ok("HSET", FIRST, "f", "1")
    for command in ("MULTI",), ("DEL", FIRST), ("SET", FIRST, "1"), ("RG.TRIGGER", "near", FIRST), ("EXEC",):
        wire.ok(*command)
    wire.ok("EVAL", "redis.call('SET', KEYS[1], '1') redis.call('RG.TRIGGER', 'near', KEYS[1])", "1", FIRST)
    wire.ok("RG.TRIGGERONKEY", "near", FIRST)
    assert wire.ok("LRANGE", OTHER, "0", "-1") == [b"hset", b"del", *[b"set"] * 5]


OUT_OF_REACH = (
    b"ERR a key of command 'GET' is in another slot than those of the client's command that is under way; this version "
    b"of the server would not find it now: use a key with the same hash tag, or mode 'async' or 'async_local'"
)


def in_multi(wire, *commands):
    wire.ok("MULTI")
    for command in commands:
        wire.ok(*command)
    return wire.ok("EXEC")


@pytest.mark.matrix
def test_what_must_run_within_a_command_finds_keys_or_says_that_it_can_not(cluster, wires):
    wire = wires[owner_of(wires, FIRST)]
    wire.ok("SET", OTHER, "there")
    code = """
def f(x):
    try:
        return execute('GET', 'other:{3}')
    except Exception as error:
        return str(error)
GB('CommandReader').map(f).register(trigger='far', mode='sync')
GB('CommandReader').map(f).register(hook='GET', keyprefix='k:', mode='sync')
"""
    everywhere(cluster, wires, code)
    assert wire.ok("RG.TRIGGER", "far") == [b"there"]
    for reply in wire.ok("RG.TRIGGERONKEY", "far", FIRST)[0], wire.ok("GET", FIRST):
        assert reply == b"there" or b"in another slot" in reply
    # Whether a transaction or a script has a slot is not told.
    assert in_multi(wire, ("RG.TRIGGER", "far"))[0] == [b"there"]
    assert in_multi(wire, ("DEL", FIRST), ("RG.TRIGGER", "far"))[1] in ([b"there"], [OUT_OF_REACH])
    assert in_multi(wire, ("DEL", OTHER), ("RG.TRIGGER", "far"))[1] == [b"None"]
    script = "redis.call('DEL', KEYS[1]) return redis.call('RG.TRIGGER', 'far')"
    assert wire.ok("EVAL", script, "1", OTHER) == [b"None"]
    assert wire.ok("KEYS", "*") == []


def test_an_id_is_of_the_shard_that_it_names(cluster, wires):
    """Executions of events are known by their numbers, and every shard counts for itself."""
    tag = own_tag(cluster.servers[0])
    slow = "import time\ndef slow(x):\n    for _ in range(50):\n        time.sleep(0.01)\n"
    register(wires[0], f"{slow}GB().foreach(slow).register('k{{{tag}}}', mode='async_local')")
    key = f"k{{{tag}}}"
    wires[0].ok("SET", key, "v")
    (execution,) = wait_until(lambda: executions_of(wires[0]), "the execution being listed")
    number = execution.rpartition(b"-")[2]
    other = wires[1].ok("CLUSTER", "MYID") + b"-" + number
    assert wires[1].call("RG.ABORTEXECUTION", other) == Error("execution does not exist")
    wait_until(lambda: counters(wires[0]) == (1, 1, 0, 0), "the end of the handler")
    # The same number, made by the other shard, and dropped by it.
    while not (own := start(wires[1], "GB('ShardsIDReader').run()")).endswith(b"-" + number):
        assert int(own.rpartition(b"-")[2]) < int(number), "the other shard has counted further"
    wait_done(wires[1], own)
    assert wires[1].call("RG.DROPEXECUTION", own) == Simple("OK")
    wait_until(lambda: own not in executions_of(wires[0]), "the drop arriving")
    assert execution in executions_of(wires[0])
    wires[0].ok("DEL", key)


def test_large_results_of_executions_on_all_shards(cluster, wires):
    wire = wires[owner_of(wires, FIRST)]
    everywhere(cluster, wires, "GB().foreach(lambda x: None).register('k:*')")
    size = 9_000_000
    for _ in range(9):
        wire.ok("SET", FIRST, b"v" * size)
        settled(wire)

    wait_until(lambda: large_results(wire, size) == 7, "the oldest ones leaving")
    wire.ok("DEL", FIRST)


def test_huge_values_of_executions_on_all_shards(cluster, wires):
    wire = wires[owner_of(wires, FIRST)]
    for number in range(0, 60_000, 1000):
        wire.ok("RPUSH", FIRST, *range(number, number + 1000))
    everywhere(cluster, wires, "GB().map(lambda x: len(x['value'])).register('k:*')")
    wire.ok("RPUSH", FIRST, "more")
    settled(wire)
    (execution,) = executions_of(wire)
    assert wire.ok("RG.GETRESULTS", execution) == [[b"60001"], []]
    wire.ok("DEL", FIRST)


PINGS = encode(("PING",)) * 20


class Busy:
    """Clients that keep a server busy; `served` counts what they have got."""

    def __init__(self, server, clients=4):
        self.served, self.over = 0, threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(server.port,)) for _ in range(clients)]

    def ask(self, port):
        with Wire(port) as wire:
            while not self.over.is_set():
                wire.send_raw(PINGS)
                for _ in range(20):
                    wire.read()
                self.served += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


FIELDS = 1_000_000
FILL = "for i = ARGV[1], ARGV[1] + 99999 do redis.call('HSET', KEYS[1], i, i) end"


@contextlib.contextmanager
def huge_hash(cluster, wires):
    """Connection and server of a shard that owns a hash of a million fields, and reads it for every HSET."""
    wire = wires[owner_of(wires, FIRST)]
    for number in range(0, FIELDS, 100_000):
        wire.ok("EVAL", FILL, 1, FIRST, number)
    try:
        everywhere(cluster, wires, "GB().count().repartition(str).register('k:*', eventTypes=['hset'])")
        yield wire, cluster.servers[wires.index(wire)]
    finally:
        wire.ok("UNLINK", FIRST)


def test_a_shard_that_reads_a_huge_value_tells_the_others_that_it_gets_on(cluster, wires):
    for one in wires:
        one.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", 1000)
    with huge_hash(cluster, wires) as (wire, server), Busy(server):
        wire.ok("HSET", FIRST, "more", 1)
        settled(wire)
        assert counters(wire) == (1, 1, 0, 0)
        (execution,) = executions_of(wire)
        assert wire.ok("RG.GETRESULTS", execution) == [[b"1"], []]


def test_an_execution_ends_while_it_reads_a_huge_value(cluster, wires):
    """It does not read the rest first."""
    with huge_hash(cluster, wires) as (wire, server), Busy(server) as busy:
        begin = busy.served
        wire.ok("HSET", FIRST, "more", 1)
        settled(wire)
        whole = busy.served - begin
        wire.ok("HSET", FIRST, "more", 2)
        (execution,) = wait_until(
            lambda: [name for name, (status, _) in executions_of(wire).items() if status == b"running"], "it running"
        )
        begin = busy.served
        assert wire.ok("RG.ABORTEXECUTION", execution) == Simple("OK")
        assert busy.served - begin < whole / 2
        settled(wire)
        assert counters(wire) == (2, 1, 0, 1)


@pytest.mark.matrix
def test_channels_of_shards_are_no_keys(cluster, wires):
    """They lead to a shard all the same, also where handlers of all keys are registered."""
    register(wires[0], "GB().foreach(lambda x: None).register('*', mode='sync')")
    owner = cluster.servers.index(cluster.owner("channel"))
    for number, wire in enumerate(wires):
        told = wire.call("SPUBLISH", "channel", "x")
        assert told == 0 if number == owner else told.text.startswith("MOVED")
    hook = "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='spublish', mode='sync')"
    assert "shard of a channel" in wires[0].error("RG.PYEXECUTE", hook)
    link = "GB().foreach(lambda x: None).register('*', mode='sync', commands=['spublish'])"
    assert "none positive first key" in wires[0].error("RG.PYEXECUTE", link)


# --- a cluster that is down -----------------------------------------------------------------------------------------

KEYS = 60
MODES = ("sync", "async_local", "async")


@pytest.fixture
def fading():
    """Three shards, of which the first one notes in lists, one for each mode, which keys expire; and its hash tag."""
    options = ("--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes")
    with localcluster.LocalCluster(masters=3, server_args=options) as own:
        own.wait_mesh()
        wait_group(own.servers)
        first = own.servers[0]
        tag = own_tag(first)
        with Wire(first.port) as wire:
            for mode in MODES:
                note = f"lambda x: execute('rpush', '{mode}{{{tag}}}', x['key'])"
                options = f"mode={mode!r}, eventTypes=['expired'], readValue=False"
                register(wire, f"GB().foreach({note}).register('k*', {options})")
            # Their time is over at once, but none is deleted before the server is told to.
            wire.ok("DEBUG", "SET-ACTIVE-EXPIRE", 0)
            for i in range(KEYS):
                wire.ok("SET", f"k{i}{{{tag}}}", "v", "PX", 1)
        yield own, first, tag
        no_crash(own.servers)


def expire_while_down(own, wire):
    """All keys go while another master is dead."""
    own.servers[2].kill()
    wait_until(lambda: b"cluster_state:fail" in wire.ok("CLUSTER", "INFO"), "the cluster being down")
    wire.ok("DEBUG", "SET-ACTIVE-EXPIRE", 1)
    wait_until(lambda: b"expired_keys:%d\r" % KEYS in wire.ok("INFO", "stats"), "the keys expiring")


def all_noted(wire, tag):
    wanted = sorted(f"k{i}{{{tag}}}".encode() for i in range(KEYS))
    for mode in MODES:
        wait_until(lambda mode=mode: wire.ok("LLEN", f"{mode}{{{tag}}}") == KEYS, f"{mode} noting all keys")
        assert sorted(wire.ok("LRANGE", f"{mode}{{{tag}}}", 0, -1)) == wanted
    settled(wire)
    assert [counters(wire, number) for number in range(len(MODES))] == [(KEYS, KEYS, 0, 0)] * len(MODES)


@pytest.mark.matrix
def test_keys_that_expire_while_the_cluster_is_down_are_handled_afterwards(fading):
    own, first, tag = fading
    with Wire(first.port) as wire:
        expire_while_down(own, wire)
        assert b"rg_events_waiting:%d\r" % (KEYS * len(MODES)) in wire.ok("INFO", "rg")
        own.servers[2].start()
        own.wait_cluster_ok()
        all_noted(wire, tag)


def test_they_wait_for_the_end_of_a_pause_of_writes_too(fading):
    """As in a fail-over by hand: handlers could write nothing."""
    own, first, tag = fading
    with Wire(first.port) as wire:
        expire_while_down(own, wire)
        wire.ok("CLIENT", "PAUSE", "60000", "WRITE")
        own.servers[2].start()
        own.wait_cluster_ok()
        # They are looked at every 50 ms.
        time.sleep(0.3)
        assert b"rg_events_waiting:%d\r" % (KEYS * len(MODES)) in wire.ok("INFO", "rg")
        wire.ok("CLIENT", "UNPAUSE")
        all_noted(wire, tag)


# Its function takes a while to be loaded.
SLOW = """
import time

class Slow:
    def __reduce__(self):
        return time.sleep, (0.3,)

GB().foreach(lambda x, slow=Slow(): None).register('other*')
"""


@pytest.mark.matrix
def test_keys_that_expire_after_a_start_are_handled(fading):
    """A node is up before its cluster is, and its handlers are there before the first key goes."""
    own, first, tag = fading
    with Wire(first.port) as wire:
        register(wire, SLOW)
    first.restart()
    own.wait_cluster_ok()
    with Wire(first.port) as wire:
        all_noted(wire, tag)


def test_what_waits_for_the_cluster_goes_with_its_registration(fading):
    own, first, tag = fading
    with Wire(first.port) as wire, Wire(own.servers[1].port) as other:
        expire_while_down(own, wire)
        assert b"rg_events_waiting:%d\r" % (KEYS * len(MODES)) in wire.ok("INFO", "rg")
        for row in other.ok("RG.DUMPREGISTRATIONS"):
            assert other.call("RG.UNREGISTER", row[1], "ABORTPENDING") == Simple("OK")
        wait_until(lambda: wire.ok("RG.DUMPREGISTRATIONS") == [], "the registrations going away")
        wait_until(lambda: b"rg_events_waiting:0\r" in wire.ok("INFO", "rg"), "the events going away")
        own.servers[2].start()
        own.wait_cluster_ok()
        assert [wire.ok("EXISTS", f"{mode}{{{tag}}}") for mode in MODES] == [0, 0, 0]
