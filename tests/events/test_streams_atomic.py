"""Batches that are one transaction (`atomicBatch=True`): each entry's effect is there once, whatever happens."""

import os
import random
import threading
import time

import localcluster
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from replies import wait_until
from streams import (
    NOTE,
    add,
    counters,
    data,
    only_group,
    register,
    register_stream,
    script,
    seen,
    status,
    wait_counters,
    wait_length,
    wait_seen,
    wait_status,
)
from wire import Parser, Wire

LOCAL = pytest.mark.parametrize("mode", ("sync", "async_local"))
# A long run kills the server more often.
KILLS = int(os.environ.get("OXIGEARS_KILLS", "15"))


def register_atomic(wire, steps, prefix="s*", mode="async_local", **words):
    register_stream(wire, steps, prefix, mode=mode, atomicBatch=True, **words)


@pytest.mark.matrix
@LOCAL
def test_writes_take_effect_after_the_steps(wire, mode):
    text = (
        "def step(x):\n"
        "    told = execute('incr', 'count')\n"
        "    execute('rpush', 'seen', '%s %s %s' % (x['id'], told, execute('get', 'count')))\n"
    )
    register(wire, text + script("foreach(step)", "s*", mode=mode, batch=2, atomicBatch=True))
    add(wire, "s1", "1-1", "1-2")
    wait_seen(wire, ["1-1 QUEUED None", "1-2 QUEUED None"])
    assert wire.ok("GET", "count") == b"2"
    wait_length(wire, "s1", 0)
    assert counters(wire)[1:] == (2, 0, 0)


@pytest.mark.matrix
def test_what_only_reads_is_answered_at_once(wire):
    """Even if it is a command that can write, or wait."""
    wire.ok("RPUSH", "list", "2", "1")
    wire.ok("GEOADD", "places", "13.4", "52.5", "here")
    wire.ok("SET", "bits", "a")
    text = (
        "READS = ('sort list', 'SORT list DESC', 'bitfield bits get u8 0', 'xread count 9 streams other 0',\n"
        "    'georadius places 13 52 900 km', 'georadiusbymember places here 9 km')\n"
        "WRITES = ('sort list store sorted', 'bitfield bits SET u8 0 98', 'georadius places 13 52 900 km STORE near')\n"
        "def step(x):\n"
        "    for command in READS + WRITES:\n"
        "        execute('rpush', 'seen', repr(execute(*command.split())))\n"
        "    try:\n"
        "        execute('xread', 'block', '1', 'streams', 'other', '0')\n"
        "    except Exception as e:\n"
        "        execute('rpush', 'seen', str(e))\n"
    )
    wire.ok("XADD", "other", "1-1", "a", "b")
    register(wire, text + script("foreach(step)", "s*", mode="sync", atomicBatch=True))
    add(wire, "s1", "1-1")
    *found, refused = seen(wire)
    reads = ["['1', '2']", "['2', '1']", "[97]", "[['other', [['1-1', ['a', 'b']]]]]", "['here']", "['here']"]
    assert found == reads + 3 * ["'QUEUED'"] and "can not be part of an atomic batch" in refused
    assert wire.ok("LRANGE", "sorted", 0, -1) == [b"1", b"2"] and wire.ok("GET", "bits") == b"b"
    assert wire.ok("ZRANGE", "near", 0, -1) == [b"here"]


@pytest.mark.matrix
@LOCAL
def test_nothing_of_a_failed_batch_has_happened(wire, mode):
    step = f"{NOTE}.foreach(lambda x: 1 / 0 if x['id'] == '1-2' else 0)"
    register_atomic(wire, step, mode=mode, batch=3)
    add(wire, "s1", "1-1", "1-2", "1-3")
    wait_counters(wire, (2, 1, 1, 0))
    assert seen(wire) == []
    wait_length(wire, "s1", 0)


def test_a_retry_makes_each_effect_once(wire):
    wire.ok("SET", "bad", "1")
    step = f"{NOTE}.foreach(lambda x: 1 / 0 if x['id'] == '1-2' and execute('exists', 'bad') else 0)"
    register_atomic(wire, step, batch=3, onFailedPolicy="retry", onFailedRetryInterval=0)
    add(wire, "s1", "1-1", "1-2", "1-3")
    wait_until(lambda: counters(wire)[2] >= 3, "some retries")
    assert seen(wire) == [] and wire.ok("XLEN", "s1") == 3
    wire.ok("DEL", "bad")
    wait_seen(wire, ["1-1", "1-2", "1-3"])
    wait_length(wire, "s1", 0)


def test_an_abort_keeps_the_entries(wire):
    register_atomic(wire, f"{NOTE}.foreach(lambda x: 1 / 0)", onFailedPolicy="abort")
    add(wire, "s1", "1-1")
    wait_status(wire, "ABORTED")
    assert seen(wire) == [] and wire.ok("XLEN", "s1") == 1


@pytest.mark.matrix
def test_a_command_that_fails_in_the_end_is_not_repeated(wire):
    wire.ok("SET", "text", "x")
    step = f"foreach(lambda x: execute('incr', 'text')).{NOTE}"
    register_atomic(wire, step, onFailedPolicy="retry", onFailedRetryInterval=0)
    add(wire, "s1", "1-1")
    wait_counters(wire, (2, 1, 1, 0))
    assert seen(wire) == ["1-1"], "the others took effect, as with MULTI/EXEC"
    wait_length(wire, "s1", 0)
    assert status(wire) == "OK"
    text = data(wire)["lastError"].decode()
    assert "not an integer" in text and "incr" in text


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("execute('blpop', 'l', '0')", "the command 'blpop' can not be part of an atomic batch"),
        ("execute('eval', 'return 1', '0')", "the command 'eval' can not be part of an atomic batch"),
        ("execute('flushall')", "the command 'flushall' can not be part of an atomic batch"),
        ("execute('config', 'set', 'x', 'y')", "the command 'config' can not be part of an atomic batch"),
        ("execute('rg.trigger', 'x')", "the command 'rg.trigger' can not be part of an atomic batch"),
        (
            "execute('rg.configset', 'MaxExecutions', '9')",
            "the command 'rg.configset' can not be part of an atomic batch",
        ),
        (
            "execute('rename', x['key'], 's2')",
            "the command 'rename' of the batch's own stream can not be part of an atomic batch",
        ),
        (
            "execute('RENAMENX', x['key'], 's2')",
            "the command 'RENAMENX' of the batch's own stream can not be part of an atomic batch",
        ),
        (
            "execute('copy', x['key'], 's2')",
            "the command 'copy' of the batch's own stream can not be part of an atomic batch",
        ),
        ("execute('move', x['key'], '1')", "the command 'move' can not be part of an atomic batch"),
        ("execute('nosuch')", "unknown command 'nosuch'"),
        ("execute('incr')", "wrong number of arguments for 'incr'"),
        ("GB('ShardsIDReader').run()", "run() can not be part of an atomic batch"),
        ("GB('CommandReader').register(trigger='t')", "register() can not be part of an atomic batch"),
    ],
)
def test_refused_in_a_batch(wire, step, text):
    register_atomic(wire, f"{NOTE}.foreach(lambda x: {step})")
    add(wire, "s1", "1-1")
    wait_counters(wire, (2, 1, 1, 0))
    assert text in data(wire)["lastError"].decode()
    assert seen(wire) == []


def test_coroutines_are_refused(wire):
    text = "async def later(x):\n    return x\n"
    register(wire, text + script(f"{NOTE}.map(later)", "s*", mode="async_local", atomicBatch=True))
    add(wire, "s1", "1-1")
    wait_counters(wire, (2, 1, 1, 0))
    assert seen(wire) == []


def test_reads_and_subcommands(wire):
    wire.ok("SET", "there", "1")
    step = (
        "foreach(lambda x: execute('rpush', 'seen', execute('get', 'there')))"
        ".foreach(lambda x: execute('xgroup', 'create', x['key'], 'more', '0'))"
        ".foreach(lambda x: execute('publish', 'channel', 'x'))"
        ".foreach(lambda x: execute('object', 'encoding', 'there'))"
    )
    register_atomic(wire, step)
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1"])
    wait_counters(wire, (2, 2, 0, 0))
    assert len(wire.ok("XINFO", "GROUPS", "s1")) == 2


def test_rights_are_checked_when_a_command_is_queued(wire, server):
    wire.ok("ACL", "SETUSER", "narrow", "on", ">secret", "~seen", "~s*", "+@all")
    with Wire(server.port) as user:
        user.ok("AUTH", "narrow", "secret")
        register_atomic(user, f"{NOTE}.foreach(lambda x: execute('set', 'other', '1'))")
    add(wire, "s1", "1-1")
    wait_counters(wire, (2, 1, 1, 0))
    assert "NOPERM" in data(wire)["lastError"].decode()
    assert seen(wire) == [] and wire.ok("EXISTS", "other") == 0
    wire.ok("ACL", "DELUSER", "narrow")


@pytest.mark.matrix
@LOCAL
def test_handlers_of_events_are_no_part_of_the_batch(wire, server, mode):
    """They have their own rights, and what they write stays."""
    wire.ok("ACL", "SETUSER", "narrow", "on", ">secret", "~k*", "~missed", "+@all")
    with Wire(server.port) as user:
        user.ok("AUTH", "narrow", "secret")
        handler = "def handler(x):\n    execute('incr', 'missed')\n    execute('set', 'other', '1')\n"
        register(user, f"{handler}GB().foreach(handler).register('k*', mode='sync', eventTypes=['keymiss'])")
    register_atomic(wire, f"{NOTE}.foreach(lambda x: execute('get', 'k1')).foreach(lambda x: 1 / 0)", mode=mode)
    add(wire, "s1", "1-1")
    wait_counters(wire, (2, 1, 1, 0))
    assert "ZeroDivisionError" in data(wire)["lastError"].decode()
    assert seen(wire) == [] and wire.ok("GET", "missed") == b"1" and wire.ok("EXISTS", "other") == 0
    wire.ok("ACL", "DELUSER", "narrow")


@pytest.mark.matrix
def test_commands_that_hooks_take_over_are_refused(wire):
    register(wire, "GB('CommandReader').map(lambda x: 'hooked').register(hook='incr', keyprefix='h')")
    register_atomic(wire, f"{NOTE}.foreach(lambda x: execute('incr', x['value']['f']))")
    wire.ok("XADD", "s1", "1-1", "f", "other")
    wait_counters(wire, (2, 2, 0, 0))
    wire.ok("XADD", "s1", "1-2", "f", "h1")
    wait_counters(wire, (3, 2, 1, 0))
    text = "the command 'incr', which a hook takes over, can not be part of an atomic batch"
    assert text in data(wire)["lastError"].decode()
    assert seen(wire) == ["1-1"]


@pytest.mark.matrix
def test_a_batch_that_can_not_be_buried_is_not_repeated(wire):
    wire.ok("SET", "dead", "no stream")
    wire.ok("SET", "text", "x")
    step = f"foreach(lambda x: execute('incr', 'text')).{NOTE}"
    register_atomic(wire, step, onFailedPolicy="retry", onFailedRetryInterval=0, maxRetries=1, deadLetter="dead")
    add(wire, "s1", "1-1")
    wait_length(wire, "s1", 0)
    assert seen(wire) == ["1-1"] and counters(wire) == (2, 1, 1, 0)


def fill(wire, key, name, count):
    text = "for i = 1, ARGV[2] do redis.call('XADD', KEYS[1], '1-' .. i, 'f', ARGV[1] .. i) end"
    wire.ok("EVAL", text, 1, key, name, count)


@LOCAL
def test_each_entry_counts_once_when_the_stream_is_replaced(wire, other_wire, mode):
    register_atomic(
        wire, "foreach(lambda x: execute('hincrby', 'each', x['value']['f'], 1))", mode=mode, duration=20, batch=5
    )
    for number in range(8):
        fill(wire, "s1", f"a{number}:", 1000)
        fill(other_wire, "other", f"b{number}:", 300)
        other_wire.ok("RENAME", "other", "s1")
        wait_length(wire, "s1", 0)
        wire.ok("DEL", "s1")
        each = wire.ok("HGETALL", "each")
        each = dict(zip(each[::2], each[1::2], strict=True))
        assert set(each.values()) == {b"1"}
        assert {b"b%d:%d" % (number, i) for i in range(1, 301)} <= each.keys()


def test_a_backlog_lets_other_streams_have_their_turn(wire):
    wire.ok("SET", "backlog", "1")
    # It never comes to its end: each entry adds the next one.
    again = "execute('xadd', 's1', '*', 'f', 'v') if x['key'] == 's1' and execute('exists', 'backlog') else 0"
    register_atomic(wire, f"foreach(lambda x: {again}).filter(lambda x: x['key'] == 's2').{NOTE}")
    fill(wire, "s1", "x", 500)
    add(wire, "s2", "2-1")
    wait_seen(wire, ["2-1"])
    wire.ok("DEL", "backlog")
    wait_length(wire, "s1", 0)


def test_memory_is_checked_when_a_command_is_queued(fresh):
    server = fresh()
    with Wire(server.port) as wire:
        register_atomic(wire, f"foreach(lambda x: execute('del', 'gone')).{NOTE}", onFailedPolicy="retry")
        add(wire, "s1", "1-1")
        wait_seen(wire, ["1-1"])
        wire.ok("XADD", "other", "1-1", "f", "v")
        wire.ok("CONFIG", "SET", "maxmemory", "1")
        wire.ok("RENAME", "other", "s2")
        wait_status(wire, "WAITING_FOR_RETRY_ON_FAILURE")
        assert "OOM" in data(wire)["lastError"].decode()
        wire.ok("CONFIG", "SET", "maxmemory", "0")
        wait_seen(wire, ["1-1", "1-1"])


def aof_commands(server):
    """The names of the commands in the AOF behind its base file, in lower case."""
    folder = os.path.join(server.dir, "appendonlydir")
    (name,) = [name for name in os.listdir(folder) if name.endswith(".incr.aof")]
    with open(os.path.join(folder, name), "rb") as file:
        parser = Parser(file.read())
    names = []
    while parser.at < len(parser.data):
        names.append(parser.value()[0].decode().lower())
    return names


@pytest.mark.parametrize("trim", [True, False])
@LOCAL
def test_one_transaction_in_the_aof(fresh, mode, trim):
    server = fresh(server_args=("--appendonly", "yes", "--appendfsync", "always"))
    with Wire(server.port) as wire:
        steps = f"foreach(lambda x: execute('incr', 'count')).{NOTE}"
        register_atomic(wire, steps, mode=mode, batch=2, trimStream=trim)
        add(wire, "s1", "1-1", "1-2")
        wait_seen(wire, ["1-1", "1-2"])
        wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-2", "the acknowledgement")
        wire.ok("SET", "end", "1")
    names = aof_commands(server)
    start = max(at for at, name in enumerate(names) if name == "multi")
    end = names.index("exec", start)
    # In mode `sync` the entry that filled the batch belongs to it, too.
    inside = [name for name in names[start + 1 : end] if name != "xadd"]
    wanted = ["incr", "rpush", "incr", "rpush", "xgroup"] + ["xtrim"] * trim
    # The consumer group may have been made in the same hold of the lock, before the batch.
    before, batch = inside[: -len(wanted)], inside[-len(wanted) :]
    assert batch == wanted and set(before) <= {"xgroup"}, inside
    assert names[end + 1 :] == ["set"]


# --- kills -------------------------------------------------------------------------------------------------------

COUNT = (
    "foreach(lambda x: execute('incr', 'count')).foreach(lambda x: execute('hincrby', 'each:' + x['key'], x['id'], 1))"
)


class Producer(threading.Thread):
    """Adds entries for as long as the server answers."""

    def __init__(self, port, stop):
        super().__init__(daemon=True)
        self.port, self.stop = port, stop

    def run(self):
        # Once the server is gone there is nothing to try again.
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(host=localcluster.HOST, port=self.port, socket_timeout=5, retry=once)
        try:
            while not self.stop.is_set():
                with client.pipeline(transaction=False) as pipe:
                    for _ in range(5):
                        pipe.xadd("s1", {"f": "v"})
                        pipe.xadd("s2", {"f": "v"})
                    pipe.execute()
        except (redis.RedisError, OSError):
            pass
        finally:
            client.close()


def total(wire):
    """Entries that were ever added and are known to the server."""
    added = 0
    for key in ("s1", "s2"):
        if wire.ok("EXISTS", key):
            added += dict(zip(*[iter(wire.ok("XINFO", "STREAM", key))] * 2, strict=True))[b"entries-added"]
    return added


def twice(wire):
    """Entries whose effect is there more than once, with the number."""
    found = {}
    for key in ("s1", "s2"):
        pairs = zip(*[iter(wire.ok("HGETALL", f"each:{key}"))] * 2, strict=True)
        found.update({(key, entry): number for entry, number in pairs if number != b"1"})
    return found


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_kills(fresh, fsync):
    """The counter equals the number of entries after any number of kills of the server."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    server = fresh(server_args=("--appendonly", "yes", "--appendfsync", fsync, "--aof-use-rdb-preamble", "yes"))
    with Wire(server.port) as wire:
        register(
            wire,
            script(COUNT, "s1", mode="async_local", batch=7, duration=20, atomicBatch=True)
            + "\n"
            + script(COUNT, "s2", mode="sync", batch=3, duration=20, atomicBatch=True, trimStream=False),
        )
    for kill in range(KILLS):
        stop = threading.Event()
        producer = Producer(server.port, stop)
        producer.start()
        time.sleep(rng.uniform(0.02, 0.25))
        if kill % 7 == 3:
            try:
                server.command("BGREWRITEAOF")
            except redis.ResponseError as error:
                # A log that has grown is rewritten without being asked for.
                assert "already in progress" in str(error)
        server.kill()
        stop.set()
        producer.join(30)
        server.start()
        with Wire(server.port) as wire:
            assert twice(wire) == {}, f"seed {seed}, kill {kill}"
            count = int(wire.ok("GET", "count") or 0)
            assert count <= total(wire), f"seed {seed}, kill {kill}"
    with Wire(server.port) as wire:
        wait_until(lambda: int(wire.ok("GET", "count") or 0) >= total(wire), "all entries", 60)
        wait_length(wire, "s1", 0)
        assert int(wire.ok("GET", "count")) == total(wire), f"seed {seed}"
        assert twice(wire) == {}, f"seed {seed}"
        each = wire.ok("HLEN", "each:s1") + wire.ok("HLEN", "each:s2")
        assert each == total(wire), f"seed {seed}"
        assert total(wire) > KILLS
        print(f"{KILLS} kills, {total(wire)} entries, counted {wire.ok('GET', 'count')!r}")
