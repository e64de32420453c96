"""Rights that change while functions run."""

import threading

import pytest
from registrations import COUNTERS
from replies import wait_until
from wire import Error, Simple, Wire

OK = Simple("OK")
pytestmark = pytest.mark.matrix
HOG = """
def hog(x):
    while not execute('exists', 'enough'):
        sum(range(10**6))
GB('CommandReader').map(hog).register(trigger='hog', mode='async_local')
"""
TAKEN = """
GB().foreach(lambda x: execute('incr', 'ran')).register('low:*', mode='sync', eventTypes=['set'])
missed = GB().foreach(lambda x: override_reply('miss'))
missed.register('low:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='hset', mode='sync', convertToStr=False)
"""


def make_user(wire, name, keys="*"):
    wire.ok("ACL", "SETUSER", name, "reset", "on", "nopass", f"~{keys}", "&*", "+@all")


def test_a_parked_client_loses_its_rights(fresh):
    """Redis 7.0 ends itself if it has to refuse a command in a thread."""
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low, Wire(server.port) as busy:
        make_user(wire, "low", "low:*")
        assert wire.ok("RG.PYEXECUTE", HOG + TAKEN) == OK
        busy.send("RG.TRIGGER", "hog")
        low.ok("AUTH", "low", "x")
        refused = 0
        for turn in range(60):
            command = (("SET", "low:1", "1"), ("HSET", f"low:h{turn}", "a", "1"), ("GET", "low:none"))[turn % 3]
            low.send(*command)
            wire.ok("ACL", "SETUSER", "low", "resetkeys", "~other")
            reply = low.read()
            if isinstance(reply, Error):
                assert "NOPERM" in reply.text
                refused += 1
            wire.ok("ACL", "SETUSER", "low", "resetkeys", "~low:*")
        wire.ok("SET", "enough", "1")
        busy.read()
        assert refused


def test_a_hook_may_not_delete_the_user_whose_function_it_serves(fresh):
    """The server would go on with the rights of a user that is freed."""
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as admin, Wire(server.port) as other:
        for name in ("me", "admin"):
            make_user(wire, name)
        admin.ok("AUTH", "admin", "x")
        program = """
def hook(x):
    try:
        execute('acl', 'deluser', 'me')
    except Exception as e:
        execute('rpush', 'said', str(e))
    return call_next(*x[1:])
GB('CommandReader').map(hook).register(hook='hset', mode='sync', convertToStr=False)
"""
        assert admin.ok("RG.PYEXECUTE", program) == OK
        other.ok("AUTH", "me", "x")
        program = """
def f(x):
    return [execute('hset', 'k', x[1], '1'), execute('hget', 'k', x[1])]
GB('CommandReader').map(f).register(trigger='sync', mode='sync')
GB('CommandReader').map(f).register(trigger='async', mode='async_local')
"""
        assert other.ok("RG.PYEXECUTE", program) == OK
        for number, way in enumerate(("sync", "async", "script") * 5):
            if way == "script":
                script = "redis.call('HSET', 'k', ARGV[1], '1'); return redis.call('HGET', 'k', ARGV[1])"
                assert other.ok("EVAL", script, 0, number) == b"1"
            else:
                assert other.ok("RG.TRIGGER", way, number) == [b"[1, '1']"]
        said = wire.ok("LRANGE", "said", 0, -1)
        assert len(said) == 15 and all(b"'acl deluser' may delete the user" in text for text in said)
        # A client's own command may.
        assert wire.ok("HSET", "k", "a", "1") == 1
        assert wire.ok("LLEN", "said") == 15
        assert b"me" not in wire.ok("ACL", "USERS")


def test_no_event_is_lost_when_handlers_of_a_user_run_late(fresh):
    """The default user's password shuts out the internal commands: sync handlers run at the end of the turn, where
    records for the others are read with the rights of their user."""
    server = fresh()
    sets = 3000
    with Wire(server.port) as wire:
        make_user(wire, "boss")
        taken = [f"-rg.innerhook{kind}" for kind in ("", ".read", ".effect", ".grow")]
        wire.ok("ACL", "SETUSER", "app", "on", "nopass", "~*", "&*", "+@all", *taken)
        wire.ok("ACL", "SETUSER", "default", "resetpass", ">secret")
        wire.ok("AUTH", "boss", "x")
        program = """
GB().foreach(lambda x: execute('incr', 'local')).register('s:*', eventTypes=['set'], mode='async_local')
GB().foreach(lambda x: execute('incr', 'sync')).register('s:*', eventTypes=['set'], mode='sync')
"""
        assert wire.ok("RG.PYEXECUTE", program) == OK

        def write(number):
            with Wire(server.port) as own:
                own.ok("AUTH", "boss", "x")
                for i in range(sets):
                    if i % 3:
                        own.ok("SET", f"s:{number}:{i}", "1")
                    else:
                        own.ok("MULTI")
                        own.call("SET", f"s:{number}:{i}", "1")
                        own.ok("EXEC")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for key in ("local", "sync"):
            wait_until(lambda key=key: int(wire.ok("GET", key) or 0) >= 3 * sets, f"all events of {key}")
            assert int(wire.ok("GET", key)) == 3 * sets
        for row in wire.ok("RG.DUMPREGISTRATIONS"):
            found = dict(zip(row[7][::2], row[7][1::2], strict=True))
            assert [found[name.encode()] for name in COUNTERS] == [3 * sets, 3 * sets, 0, 0]


REFUSED = ("'client', 'pause', '100'", "'client', 'pause', '100', 'write'", "'failover'", "'failover', 'to', 'h', '1'")


@pytest.mark.parametrize("mode", ("sync", "async_local"))
@pytest.mark.parametrize("command", (*REFUSED, "'client', 'kill', 'type', 'normal'"))
def test_commands_that_would_end_the_server(wire, mode, command):
    program = f"""
def f(x):
    execute('set', 'written', '1')
    return execute({command})
GB('CommandReader').map(f).register(trigger='t', mode='{mode}')
"""
    if mode == "async_local" and "kill" in command:
        # In a thread it kills its own caller's connection, like any other.
        command = "'client', 'kill', 'id', '999999'"
        program = program.replace("'type', 'normal'", "'id', '999999'")
        assert wire.ok("RG.PYEXECUTE", program) == OK
        assert wire.ok("RG.TRIGGER", "t") == [b"0"]
        return
    assert wire.ok("RG.PYEXECUTE", program) == OK
    reply = wire.call("RG.TRIGGER", "t")
    text = reply.text if isinstance(reply, Error) else str(reply)
    assert "functions can not call it here" in text
    assert wire.ok("GET", "written") == b"1"


def test_hooks_leave_these_to_the_server(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as other:
        program = """
def hook(x):
    execute('incr', 'hooked')
    return call_next(*x[1:])
GB('CommandReader').map(hook).register(hook='client', mode='sync', convertToStr=False)
"""
        number = other.ok("CLIENT", "ID")
        assert wire.ok("RG.PYEXECUTE", program) == OK
        assert wire.ok("CLIENT", "GETNAME") is None
        assert wire.ok("GET", "hooked") is None
        assert b"addr=" in wire.ok("CLIENT", "LIST")
        assert wire.ok("GET", "hooked") == b"1"
        assert wire.ok("CLIENT", "PAUSE", "1", "WRITE") == OK
        assert wire.ok("CLIENT", "KILL", "ID", number) == 1
        assert wire.ok("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no") == 1
    with Wire(server.port) as wire:
        assert wire.ok("GET", "hooked") == b"1"


@pytest.mark.parametrize("policy", ("retry", "abort", "continue"))
@pytest.mark.parametrize("more", ("", ", atomicBatch=True"), ids=("plain", "atomic"))
def test_a_new_stream_that_the_user_may_not_read(fresh, policy, more):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as boss:
        make_user(wire, "boss")
        boss.ok("AUTH", "boss", "x")
        program = "GB('StreamReader').foreach(lambda x: execute('incr', 'ran'))"
        words = f"mode='async_local', onFailedPolicy='{policy}', onFailedRetryInterval=1{more}"
        assert boss.ok("RG.PYEXECUTE", f"{program}.register('s*', {words})") == OK

        def row():
            (found,) = wire.ok("RG.DUMPREGISTRATIONS")
            return dict(zip(found[7][::2], found[7][1::2], strict=True))

        wire.ok("ACL", "SETUSER", "boss", "resetkeys", "~other")
        wire.ok("XADD", "s1", "*", "a", "1")
        wait_until(lambda: row()[b"numFailures"] > 0, "the failure")
        assert b"NOPERM" in row()[b"lastError"]
        wire.ok("ACL", "SETUSER", "boss", "~*")
        if policy == "continue":
            # Its entry waits for the next one.
            wire.ok("XADD", "s1", "*", "a", "2")
            wait_until(lambda: wire.ok("GET", "ran") == b"2", "both entries")
        elif policy == "retry":
            wait_until(lambda: wire.ok("GET", "ran") == b"1", "the next try")
        assert row()[b"status"] == (b"ABORTED" if policy == "abort" else b"OK")
        wait_until(lambda: wire.ok("XLEN", "s1") == (1 if policy == "abort" else 0), "the stream's length")


def test_streams_are_trimmed_and_dead_letters_written_with_the_rights_of_the_user(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "%R~s*", "~own", "+@all")
        low.ok("AUTH", "low", "x")

        def register(stream, step, words):
            program = f"GB('StreamReader').foreach({step}).register('{stream}', mode='async_local', {words})"
            assert low.ok("RG.PYEXECUTE", program) == OK

        def row(stream):
            for found in wire.ok("RG.DUMPREGISTRATIONS"):
                fields = dict(zip(found[7][::2], found[7][1::2], strict=True))
                if fields[b"args"][fields[b"args"].index(b"stream") + 1] == stream.encode():
                    return fields
            raise AssertionError(f"no registration of {stream}")

        note, fail = "lambda x: execute('rpush', 'own', x['key'])", "lambda x: 1 / 0"
        retry = "onFailedPolicy='retry', maxRetries=0, onFailedRetryInterval=1, trimStream=False"
        register("s1", note, "trimStream=True")
        register("s2", note, "trimStream=False")
        register("s3", fail, f"{retry}, deadLetter='dead'")
        register("s4", fail, f"{retry}, deadLetter='own:dead'")
        for stream in ("s1", "s2", "s3"):
            wire.ok("XADD", stream, "*", "a", "1")
        for stream, why in (("s1", b"trimStream"), ("s3", b"deadLetter")):
            wait_until(lambda stream=stream: row(stream)[b"numFailures"] > 0, f"the failure of {stream}")
            assert b"NOPERM user 'low' may not" in row(stream)[b"lastError"] and why in row(stream)[b"lastError"]
        wait_until(lambda: wire.ok("LRANGE", "own", 0, -1) == [b"s2"], "the one that may do what it does")
        assert [wire.ok("XLEN", stream) for stream in ("s1", "s2", "s3", "dead")] == [1, 1, 1, 0]
        wire.ok("ACL", "SETUSER", "low", "~own:dead", "~dead", "~s1")
        wire.ok("XADD", "s4", "*", "a", "1")
        wait_until(lambda: wire.ok("XLEN", "own:dead") == wire.ok("XLEN", "dead") == 1, "the dead letters")
        wire.ok("XADD", "s1", "*", "a", "1")
        wait_until(lambda: wire.ok("XLEN", "s1") == 0, "the stream being trimmed")


@pytest.mark.parametrize("more", ("", ", atomicBatch=True"), ids=("plain", "atomic"))
@pytest.mark.parametrize("lost", (("SETUSER", "low", "resetkeys"), ("SETUSER", "low", "-@all"), ("DELUSER", "low")))
def test_a_stream_whose_user_loses_the_right_to_read_it(fresh, lost, more):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        make_user(wire, "low")
        low.ok("AUTH", "low", "x")
        program = "GB('StreamReader').foreach(lambda x: None)"
        assert low.ok("RG.PYEXECUTE", f"{program}.register('s', mode='async_local'{more})") == OK
        wire.ok("XADD", "s", "*", "a", "1")
        wait_until(lambda: wire.ok("XLEN", "s") == 0, "the first entry")
        wire.ok("ACL", *lost)
        wire.ok("XADD", "s", "*", "a", "1")

        def row():
            (found,) = wire.ok("RG.DUMPREGISTRATIONS")
            return dict(zip(found[7][::2], found[7][1::2], strict=True))

        wait_until(lambda: row()[b"numFailures"] > 0, "the failure")
        assert b"NOPERM" in row()[b"lastError"] and wire.ok("XLEN", "s") == 1
        make_user(wire, "low")
        wire.ok("XADD", "s", "*", "a", "2")
        wait_until(lambda: wire.ok("XLEN", "s") == 0, "what had waited")
