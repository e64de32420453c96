"""Commands that registrations take over stay what they were: rights, routing, pauses, replicas, errors."""

import re
import threading
from pathlib import Path

import pytest
from firing import counters, listed, settled, wait_list
from registrations import dump, only, register
from replies import is_error, wait_until
from wire import Error, Simple, Wire, encode

pytestmark = pytest.mark.matrix

OK = Simple("OK")
B = "GB('CommandReader')"
NEXT = f"{B}.map(lambda x: call_next(*x[1:]))"
NOTED = (
    "GB().foreach(lambda x: execute('rpush', 'seen', x['key']))"
    ".register('k*', mode='sync', eventTypes=['set', 'keymiss'])"
)
HOOKED = f"{B}.map(lambda x: 'hook:' + call_next(*x[1:])).register(hook='getrange', mode='sync')"


def in_multi(wire, *args):
    assert wire.ok("MULTI") == OK
    reply = wire.call(*args)
    if isinstance(reply, Error):
        wire.call("DISCARD")
        return reply
    (reply,) = wire.ok("EXEC")
    return reply


@pytest.fixture
def users(wire):
    """Makes users; takes them and the password of the default user away after the test."""
    yield lambda name, *rules: wire.ok("ACL", "SETUSER", name, "on", ">pw", *rules)
    wire.ok("ACL", "SETUSER", "default", "nopass")
    for user in wire.ok("ACL", "USERS"):
        if user != b"default":
            wire.ok("ACL", "DELUSER", user)


def login(server, user, password="pw"):
    own = Wire(server.port)
    own.ok("AUTH", user, password)
    return own


TRIED = [
    ("SET", "k", "v"),
    ("SET", "other", "v"),
    ("GET", "k"),
    ("GET", "kmissing"),
    ("APPEND", "k", "v"),
    ("MSET", "k", "1", "other", "2"),
    ("SET", "k"),
    ("GETRANGE", "k", "0", "0"),
    ("GETRANGE", "other", "0", "0"),
    ("GETRANGE", "k"),
]


def test_rights_are_those_of_the_command(server, wire, users):
    users("bob", "~k*", "+set", "+get", "+mset", "+getrange", "+multi", "+exec", "+discard")
    users("eve", "~*", "+ping")
    registered = False
    found = {}
    for _ in range(2):
        for name in ("bob", "eve"):
            wire.ok("DEL", "k", "other")
            with login(server, name) as own:
                replies = [own.call(*command) for command in TRIED]
                if name == "bob":
                    replies += [in_multi(own, *command) for command in TRIED]
            found.setdefault(name, []).append(replies)
        if not registered:
            register(wire, NOTED)
            register(wire, f"{NEXT}.register(hook='getrange', mode='sync')")
            registered = True
    assert found["eve"][0] == found["eve"][1]
    before, after = found["bob"]
    assert before == after
    assert listed(wire)[:2] == ["k", "kmissing"]


def test_a_password_for_the_default_user(server, wire, users):
    register(wire, NOTED)
    register(wire, HOOKED)
    wire.ok("SET", "k1", "v")
    users("bob", "~*", "+@all", "-@admin", *(f"-rg.innerhook{more}" for more in ("", ".read", ".grow")))
    users("amy", "~*", "+@all", "-@admin")
    wire.ok("ACL", "SETUSER", "default", "resetpass", ">secret")
    with Wire(server.port) as stranger:
        for command in (
            ["SET", "k2", "v"],
            ["GET", "k1"],
            ["GETRANGE", "k1", "0", "0"],
            ["RG.INNERHOOK.FREE", "GET", "k1"],
        ):
            reply = stranger.call(*command)
            assert isinstance(reply, Error) and (
                reply.text.startswith("NOAUTH") or "RG.INNERHOOK is internal" in reply.text
            ), (command, reply)
    with login(server, "bob") as bob:
        # What must not fail is not taken over: the handler runs all the same, a little later.
        assert bob.call("SET", "k3", "v") == OK
        is_error(bob.call("GETRANGE", "k1", "0", "0"), "NOPERM")
    wait_list(wire, ["k1", "k3"])
    with login(server, "amy") as amy:
        assert amy.call("GETRANGE", "k1", "0", "0") == b"hook:v"
        assert amy.call("SET", "k4", "v") == OK
    wire.ok("ACL", "SETUSER", "default", "nopass")
    with login(server, "bob") as bob:
        assert bob.call("GETRANGE", "k1", "0", "0") == b"hook:v"


def test_a_password_that_is_set_in_a_transaction(server, wire, users):
    register(wire, NOTED)
    wire.ok("SET", "k1", "v")
    wire.ok("MULTI")
    wire.ok("ACL", "SETUSER", "default", "resetpass", ">secret")
    wire.ok("EXEC")
    with Wire(server.port) as stranger:
        is_error(stranger.call("SET", "k2", "v"), "NOAUTH")
    wire.ok("ACL", "SETUSER", "default", "nopass")
    with Wire(server.port) as other:
        assert other.call("SET", "k2", "v") == OK
    assert listed(wire) == ["k1", "k2"]


def test_a_hook_acts_for_its_user(server, wire, users):
    """Other arguments than the client's are the hook's own doing."""
    users("maker", "~m:*", "+@all", "-acl")
    users("bob", "~b:*", "+get", "+set")
    wire.ok("MSET", "b:k", "bob's", "m:k", "maker's")
    with login(server, "maker") as maker:
        register(
            maker,
            f"{B}.map(lambda x: call_next('m:k' if x[1] == 'b:m' else x[1] if x[1] == 'b:k' else 'b:k'))"
            ".register(hook='get', mode='sync')",
        )
    with login(server, "bob") as bob:
        assert bob.call("GET", "b:k") == b"bob's"
        assert bob.call("GET", "b:m") == b"maker's"
        is_error(bob.call("GET", "b:x"), "gears.error: NOPERM")
        is_error(bob.call("GET", "m:k"), "NOPERM")


def test_functions_are_hooked_with_their_users_rights(server, wire, users):
    users("bob", "~k*", "+@all", "-acl")
    register(wire, f"{NEXT}.register(hook='set', mode='sync')")
    register(wire, NOTED)
    with login(server, "bob") as bob:
        script = "GB('ShardsIDReader').map(lambda x: execute('set', %r, '1')).run()"
        assert bob.ok("RG.PYEXECUTE", script % "k")[0] == [b"OK"]
        assert b"gears.error: NOPERM" in bob.ok("RG.PYEXECUTE", script % "other")[1][0]
        assert bob.call("EVAL", "return redis.call('set', KEYS[1], '1')", 1, "k2") == b"OK"
        is_error(bob.call("EVAL", "return redis.call('set', 'other', '1')", 0), "access ", " key")
    assert wire.ok("EXISTS", "other") == 0
    assert listed(wire) == ["k", "k2"]


@pytest.mark.parametrize(
    "program",
    [
        "GB().foreach(lambda x: None).register('k*', mode='sync')",
        "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='pfcount', mode='sync')",
    ],
    ids=["handler", "hook"],
)
def test_reads_that_may_be_replicated_wait_for_the_end_of_a_pause(fresh, program):
    server = fresh(server_args=("--appendonly", "yes"))
    with Wire(server.port) as wire, Wire(server.port) as other:
        register(wire, program)
        wire.ok("PFADD", "k1", "a", "b")
        wire.ok("CLIENT", "PAUSE", "60000", "WRITE")
        other.send("PFCOUNT", "k1")
        assert not other.has_reply(0.3)
        wire.ok("CLIENT", "UNPAUSE")
        assert int(other.read()) == 2


def test_paused_writes_wait(server, wire, other_wire):
    register(wire, NOTED)
    wire.ok("CLIENT", "PAUSE", 60000, "WRITE")
    other_wire.send("SET", "k", "v")
    assert not other_wire.has_reply(0.1)
    assert wire.ok("GET", "k") is None
    wire.ok("CLIENT", "UNPAUSE")
    assert other_wire.read() == OK
    settled(wire)
    assert "k" in listed(wire)


def test_full_memory(wire):
    register(wire, NOTED)
    register(wire, f"{NEXT}.register(hook='rpush', mode='sync')")
    wire.ok("CONFIG", "SET", "maxmemory", "1")
    try:
        assert wire.error("SET", "k", "v").startswith("OOM")
        assert wire.error("RPUSH", "l", "v").startswith("OOM")
        assert wire.ok("DEL", "k") == 0
    finally:
        wire.ok("CONFIG", "SET", "maxmemory", "0")


def test_read_only_scripts(wire):
    register(wire, NOTED)
    register(wire, f"{NEXT}.register(hook='strlen', mode='sync', convertToStr=False)")
    assert wire.call("EVAL_RO", "return redis.call('get', KEYS[1])", 1, "k") is None
    assert wire.call("EVAL_RO", "return redis.call('strlen', KEYS[1])", 1, "k") == 0
    is_error(wire.call("EVAL_RO", "return redis.call('set', KEYS[1], 'v')", 1, "k"), "Write commands are not allowed")


def test_routing_in_a_cluster(cluster, wires):
    register(wires[0], "GB().foreach(lambda x: execute('incr', 'n{%s}' % hashtag())).register('k*', mode='sync')")
    register(wires[0], f"{NEXT}.register(hook='getrange', mode='sync')")
    register(wires[0], f"{NEXT}.register(hook='strlen', mode='async_local', convertToStr=False)")
    replies = {}
    for wire in wires:
        for number in range(9):
            for command in (["SET", f"k{number}", "v"], ["GETRANGE", f"k{number}", "0", "0"], ["STRLEN", f"k{number}"]):
                replies.setdefault((command[0], number), []).append(wire.call(*command))
    for (name, _), found in replies.items():
        good = [reply for reply in found if not isinstance(reply, Error)]
        assert good == [{"SET": OK, "GETRANGE": b"v", "STRLEN": 1}[name]], found
        assert all(reply.text.startswith("MOVED ") for reply in found if isinstance(reply, Error))
    is_error(wires[0].call("MSET", "k1", "1", "k2", "2"), "CROSSSLOT")
    is_error(in_multi(wires[0], "MSET", "k1", "1", "k2", "2"), "CROSSSLOT")
    for wire in wires:
        moved = wire.call("EVAL", "return redis.pcall('set', 'k1', 'v')", 1, "k1")
        assert moved in (OK, b"OK") or moved.text.startswith("MOVED ")


def test_replicas(fresh):
    master, replica = fresh(), fresh()
    with Wire(master.port) as wire, Wire(replica.port) as own:
        register(wire, f"{NEXT}.register(hook='set', mode='sync')")
        register(wire, f"{B}.map(lambda x: 'hook:' + str(call_next(*x[1:]))).register(hook='get', mode='sync')")
        register(wire, f"{B}.map(lambda x: call_next(*x[1:])).register(hook='strlen', mode='async_local')")
        register(wire, f"{B}.map(lambda x: execute('set', 'w', '1')).register(hook='exists', mode='sync')")
        register(wire, NOTED)
        own.ok("REPLICAOF", "127.0.0.1", master.port)
        wait_until(lambda: b"master_link_status:up" in own.ok("INFO", "replication"), "the link")
        wait_until(lambda: len(dump_ids(own)) == 5, "the registrations")
        wire.ok("SET", "k", "v")
        wait_until(lambda: own.call("GET", "k") == b"hook:v", "the write")
        assert own.call("STRLEN", "k") == b"1"
        assert own.error("SET", "k", "w").startswith("READONLY")
        is_error(own.call("EXISTS", "k"), "READONLY")
        assert own.ok("LRANGE", "seen", 0, -1) == [b"k"]


def dump_ids(wire):
    return [row[1] for row in wire.ok("RG.DUMPREGISTRATIONS")]


def test_effects_follow_their_cause(fresh):
    server = fresh(server_args=("--appendonly", "yes", "--enable-debug-command", "yes"))
    with Wire(server.port) as wire:
        register(wire, NOTED)
        wire.ok("SET", "k1", "v")
        # One transaction, the cause first.
        folder = Path(wire.ok("CONFIG", "GET", "dir")[1].decode()) / "appendonlydir"
        (log,) = folder.glob("*.incr.aof")

        def logged():
            words = re.findall(rb"\$\d+\r\n(multi|set|rpush|exec)\r\n", log.read_bytes(), re.IGNORECASE)
            return [word.lower() for word in words]

        wait_until(lambda: b"exec" in logged(), "the AOF being written")
        assert logged()[-4:] == [b"multi", b"set", b"rpush", b"exec"]
        wire.ok("MULTI")
        wire.ok("SET", "k2", "v")
        wire.ok("LRANGE", "seen", 0, -1)
        wire.ok("SET", "k3", "v")
        assert wire.ok("EXEC") == [OK, [b"k1", b"k2"], OK]
        lua = "redis.call('set', 'k4', 'v'); return redis.call('lrange', 'seen', 0, -1)"
        assert wire.ok("EVAL", lua, 0) == [b"k1", b"k2", b"k3", b"k4"]
        wire.ok("DEBUG", "LOADAOF")
        wait_list(wire, ["k1", "k2", "k3", "k4"])


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_many_clients_of_hooks_of_which_some_leave(server, wire, mode):
    register(
        wire,
        f"import time\n{B}.foreach(lambda x: time.sleep(0.001)).map(lambda x: call_next(*x[1:]) + '!')"
        f".register(hook='echo', mode={mode!r})",
    )
    wrong = []

    def client(number):
        with Wire(server.port) as own:
            for turn in range(5):
                own.send("ECHO", f"{number}:{turn}")
                own.send("PING")
                if number % 2 and turn == 2:
                    return
                replies = [own.read(), own.read()]
                if replies != [f"{number}:{turn}!".encode(), Simple("PONG")]:
                    wrong.append(replies)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a client waits for ever"
    assert wrong == []
    wait_until(lambda: b"blocked_clients:0" in wire.ok("INFO", "clients"), "no client being parked")
    wait_until(lambda: counters(wire)[0] == sum(counters(wire)[1:]), "all executions ending")
    assert counters(wire)[2] == 0


def test_hook_registration_errors(wire):
    for keywords, text in (
        ("hook='nosuch'", "Can not override an unexisting command"),
        ("hook='multi'", "Can not override a command which are not allowed inside a script"),
        ("hook='RG.TRIGGER'", "Can not override a command which are not allowed inside a script"),
        ("hook='zunion', keyprefix='p'", "Can not override a command with moveable keys by key prefix"),
        ("hook='ping', keyprefix='p'", "Can not override a command by key prefix with none positive first key"),
        ("hook=5", "hook argument is not string"),
        ("hook='get', keyprefix=5", "keyprefix argument is not string"),
        ("hook='get', trigger='t'", "trigger argument can not be given with keyprefix or hook"),
        ("", "no trigger or hook argument was given"),
    ):
        is_error(wire.call("RG.PYEXECUTE", f"{B}.register({keywords})"), text)
    register(wire, f"{B}.register(hook='PING', mode='sync')")
    assert only(wire).trigger == b"ping"


def test_h5_no_hook_upon_one_that_is_not_sync(wire):
    register(wire, f"{NEXT}.register(hook='set', mode='sync')", "ID", "first")
    register(wire, f"{NEXT}.register(hook='set', keyprefix='p', mode='async_local')", "ID", "second")
    for mode in ("sync", "async"):
        is_error(
            wire.call("RG.PYEXECUTE", f"{NEXT}.register(hook='set', mode={mode!r})"),
            "Can not override a none sync registration",
        )
    twice = f"{NEXT}.register(hook='get', mode='async')\n{NEXT}.register(hook='get', mode='sync')"
    is_error(
        wire.call("RG.PYEXECUTE", twice),
        "Can not override a none sync registration which already created on this session",
    )
    assert len(dump(wire)) == 2
    # Its own upgrade may.
    register(wire, f"{NEXT}.register(hook='set', mode='async')", "ID", "second", "UPGRADE")
    assert wire.call("SET", "k", "v") == b"OK"


def test_writers_wait_while_too_many_events_do(server, wire, other_wire):
    """Nothing is lost: the command of a client that would overfill the queue is held up until there is room."""
    script = """
import time
opened = []
def hold(x):
    limit = time.monotonic() + 60
    while not opened and time.monotonic() < limit:
        if execute('exists', 'gate'):
            opened.append(1)
        time.sleep(0.005)
GB().foreach(hold).register('k*', mode='async_local', eventTypes=['set'])
"""
    register(wire, script)
    count, full = 130_000, 100_000
    replies = []

    def read():
        replies.extend(other_wire.read() for _ in range(count))

    reader = threading.Thread(target=read)
    reader.start()
    other_wire.send_raw(encode(["SET", "k", "v"]) * count)
    wait_until(lambda: counters(wire)[0] >= full, "the queue being full")
    wait_until(lambda: b"blocked_clients:1" in wire.ok("INFO", "clients"), "the writer being parked")
    triggered = counters(wire)[0]
    assert triggered <= full + 100
    # What can not wait goes on, and so do those whom it does not concern.
    assert in_multi(wire, "SET", "k", "v") == OK
    assert wire.ok("SET", "other", "v") == OK
    assert wire.ok("GET", "k") == b"v"
    wire.ok("SET", "gate", "open")
    reader.join(100)
    assert not reader.is_alive() and replies == [OK] * count
    settled(wire)
    assert counters(wire) == (count + 1, count + 1, 0, 0)


def test_a_hook_on_a_replica_of_a_cluster(replicated_reads):
    master, replica, key = replicated_reads
    register(master, f"{B}.map(lambda x: 'hook:' + str(call_next(*x[1:]))).register(hook='get', mode='sync')")
    master.ok("SET", key, "v")
    assert master.ok("GET", key) == b"hook:v"
    wait_until(lambda: len(dump_ids(replica)) == 1, "the registration")
    assert replica.error("GET", key).startswith("MOVED ")
    replica.ok("READONLY")
    wait_until(lambda: replica.call("GET", key) == b"hook:v", "the write being there")


@pytest.fixture
def replicated_reads(six):
    """Connections to a master and its replica, and a key of theirs."""
    by_id = {server.node_id.encode(): server for server in six.servers}
    with Wire(six.servers[0].port) as any_node:
        wait_until(lambda: len(any_node.ok("CLUSTER", "SLOTS")[0]) >= 4, "the replica being known")
        first, last, master, replica, *_ = any_node.ok("CLUSTER", "SLOTS")[0]
        key = next(f"k{n}" for n in range(100_000) if first <= any_node.ok("CLUSTER", "KEYSLOT", f"k{n}") <= last)
    with Wire(by_id[master[2]].port) as writes, Wire(by_id[replica[2]].port) as reads:
        yield writes, reads, key
        writes.ok("DEL", key)


@pytest.mark.parametrize("command", [("GETSET", "k", "v"), ("GETDEL", "k")])
def test_errors_that_a_server_keeps_back(wire, other_wire, command):
    """Valkey 9 gives modules an empty reply for these, and the next one who asks gets the reply that is missing."""
    register(wire, NOTED)
    register(wire, f"{B}.map(lambda x: call_next(*x[1:])).register(hook='getdel', keyprefix='x', mode='sync')")
    for key in ("k", "x"):
        tried = (command[0], key, *command[2:])
        wire.ok("DEL", key)
        wire.ok("SADD", key, "member")
        wire.send_raw(encode(tried) + encode(("ECHO", "next")))
        assert is_error(wire.read(), "WRONGTYPE")
        assert wire.read() == b"next"
        assert is_error(in_multi(wire, *tried), "WRONGTYPE")
        lua = "local reply = redis.pcall(unpack(ARGV)) return {type(reply), reply.err}"
        assert wire.ok("EVAL", lua, 1, key, *tried)[0] == b"table"
        code = f"execute(*{tried!r})"
        reply = wire.call("RG.PYEXECUTE", f"GB('PythonReader').map(lambda x: {code}).run(lambda: iter([1]))")
        assert reply[0] == [] and b"WRONGTYPE" in reply[1][0]
        assert other_wire.ok("SMEMBERS", key) == [b"member"]
