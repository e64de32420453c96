"""A write-behind program: changes of hashes go to a stream on their shard, and from there in batches into SQLite.

The back end fails at times, before it has stored a batch and after. Shards are killed: some come back at once with the
AOF, some are replaced by their replica. The writer sends a change again until the master and a replica have it, as a
client must who wants to survive a fail-over. In the end the table has to be equal to the keyspace.

Long variant: OXIGEARS_WRITE_BEHIND_CHANGES=100000.
"""

import json
import os
import random
import sqlite3
import threading
import time

import localcluster
import pytest
import redis
from breaking import no_crash
from registrations import wait_group
from replies import wait_until
from wire import Simple, Wire

CHANGES = int(os.environ.get("OXIGEARS_WRITE_BEHIND_CHANGES", "6000"))
BATCH = 50
KEYS = 500
# Changes between two kills, at least, and pauses in which the cluster heals.
CHANGES_A_KILL = 400
KILLS_MOST = 60
SHARDS = 3
DELETED = 0.1
# Bounds that only guard against hanging.
ATTEMPT_S = 2.0
BATCH_S = 120.0
DRAIN_S = 300.0

PROGRAM = """
import json, random, sqlite3

def to_stream(x):
    value = None if x['event'] == 'del' else x['value']
    execute('XADD', 'changes:{%s}' % hashtag(), '*', 'key', x['key'], 'value', json.dumps(value))

GB('KeysReader').foreach(to_stream).register(prefix='person:*', mode='sync', eventTypes=['hset', 'del'])

def store(batch):
    if random.random() < 0.05:
        raise Exception('the back end is down')
    db = sqlite3.connect(PATH, timeout=30)
    try:
        with db:
            for change in batch:
                key, value = change['key'], json.loads(change['value'])
                if value is None:
                    db.execute('DELETE FROM people WHERE key = ?', (key,))
                else:
                    row = (key, json.dumps(value, sort_keys=True))
                    db.execute('INSERT OR REPLACE INTO people VALUES (?, ?)', row)
    finally:
        db.close()
    if random.random() < 0.05:
        raise Exception('the answer of the back end was lost')

(GB('StreamReader')
    .accumulate(lambda batch, x: (batch or []) + [x['value']])
    .foreach(store)
    .register('changes:*', mode='async_local', batch=100, duration=20, onFailedPolicy='retry',
              onFailedRetryInterval=RETRY_S))
"""


def make_table(path):
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE people (key TEXT PRIMARY KEY, value TEXT)")
    db.commit()
    db.close()


def table(path):
    db = sqlite3.connect(path)
    try:
        return dict(db.execute("SELECT key, value FROM people"))
    finally:
        db.close()


def owner_of(cluster, first_slot):
    """The live master of a slot, or nobody yet."""
    for server in cluster.live():
        try:
            rows = server.command("CLUSTER", "SLOTS", timeout=ATTEMPT_S)
        except (redis.RedisError, OSError):
            continue
        for first, last, (_, port, *_), *_ in rows:
            if first <= first_slot <= last and cluster.by_port(port).alive():
                return cluster.by_port(port)
    return None


class Writer(threading.Thread):
    """Changes the hashes of one shard, each again until a replica has it."""

    def __init__(self, cluster, slot, keys, changes, seed):
        super().__init__()
        self.cluster, self.slot, self.keys, self.left = cluster, slot, keys, changes
        self.random = random.Random(seed)
        self.written = 0
        self.error = None

    def run(self):
        try:
            while self.written < self.left:
                changes = [self.change(i) for i in range(BATCH)]
                localcluster.wait_until(lambda changes=changes: self.send(changes), BATCH_S, "a batch of changes")
                self.written += BATCH
        except BaseException as error:
            self.error = error

    def change(self, i):
        key = self.random.choice(self.keys)
        if self.random.random() < DELETED:
            return ("DEL", key)
        return ("HSET", key, "n", self.written + i, "text", "x" * self.random.randrange(40))

    def send(self, changes):
        server = owner_of(self.cluster, self.slot)
        if server is None:
            return False
        with server.client(socket_timeout=ATTEMPT_S) as client:
            pipe = client.pipeline(transaction=False)
            for change in changes:
                pipe.execute_command(*change)
            pipe.execute_command("WAIT", 1, int(ATTEMPT_S * 500))
            return pipe.execute()[-1] >= 1


class Killer(threading.Thread):
    """Kills masters, one after the other, as long as the writers get on."""

    def __init__(self, cluster, writers, seed):
        super().__init__()
        self.cluster, self.writers = cluster, writers
        self.random = random.Random(seed)
        self.kills = self.fail_overs = 0
        self.error = None

    def run(self):
        try:
            due = CHANGES_A_KILL
            while any(writer.is_alive() for writer in self.writers) and self.kills < KILLS_MOST:
                if sum(writer.written for writer in self.writers) < due:
                    time.sleep(localcluster.POLL_S)
                    continue
                self.kill()
                due = sum(writer.written for writer in self.writers) + max(CHANGES_A_KILL, CHANGES // KILLS_MOST)
        except BaseException as error:
            self.error = error

    def kill(self):
        victim = self.random.choice(self.cluster.masters())
        slot = next(first for first, _, port, _ in localcluster._slot_rows(victim) if port == victim.port)
        victim.kill()
        self.kills += 1
        if self.kills % 2:
            # Long enough away to be replaced.
            def replaced():
                owner = owner_of(self.cluster, slot)
                return owner is not None and owner is not victim

            wait_until(replaced, "the promotion of a replica", BATCH_S)
            self.fail_overs += 1
        victim.start()
        self.cluster.wait_cluster_ok(BATCH_S)


def keyspace(cluster):
    found = {}
    for server in cluster.masters():
        with server.client() as client:
            for key in client.scan_iter("person:*", count=1000):
                value = {name.decode(): text.decode() for name, text in client.hgetall(key).items()}
                found[key.decode()] = json.dumps(value, sort_keys=True)
    return found


def drained(cluster):
    """No stream holds an entry any more."""
    for server in cluster.masters():
        with server.client() as client:
            if any(client.xlen(key) for key in client.scan_iter("changes:*", count=1000)):
                return False
    return True


def keys_of(cluster):
    """First slot of each master -> keys that it owns, all with one tag."""
    found = {}
    for first, last, *_ in localcluster._slot_rows(cluster.masters()[0]):
        tag = next(i for i in range(10 * localcluster.SLOTS) if first <= localcluster.key_slot(b"%d" % i) <= last)
        found[first] = [f"person:{{{tag}}}:{i}" for i in range(KEYS // SHARDS)]
    return found


@pytest.fixture
def six(tmp_path):
    args = ("--appendonly", "yes")
    with localcluster.LocalCluster(masters=SHARDS, replicas=1, server_args=args) as cluster:
        cluster.wait_mesh()
        wait_group(cluster.servers)
        yield cluster
        no_crash(cluster.servers)


def test_the_table_equals_the_keyspace(six, tmp_path):
    path = str(tmp_path / "people.db")
    make_table(path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with Wire(six.masters()[0].port) as wire:
        program = f"PATH, RETRY_S = {path!r}, 1\n{PROGRAM}"
        assert wire.call("RG.PYEXECUTE", program, "ID", "write-behind") == Simple("OK")
    writers = [
        Writer(six, slot, keys, CHANGES // SHARDS, seed + i) for i, (slot, keys) in enumerate(keys_of(six).items())
    ]
    killer = Killer(six, writers, seed)
    start = time.monotonic()
    for thread in (*writers, killer):
        thread.start()
    for thread in (*writers, killer):
        thread.join()
    for thread in (*writers, killer):
        assert thread.error is None, repr(thread.error)
    written = time.monotonic()
    six.wait_cluster_ok()
    wait_until(lambda: drained(six), "the streams being empty", DRAIN_S)
    wanted = keyspace(six)
    wait_until(lambda: table(path) == wanted, "the table being equal", DRAIN_S)
    assert killer.kills > 0
    print(
        f"{sum(writer.written for writer in writers)} changes, {killer.kills} kills, {killer.fail_overs} fail-overs, "
        f"{len(wanted)} rows, {written - start:.0f} s + {time.monotonic() - written:.0f} s"
    )
