"""Rights that change while functions run."""

import threading
import time

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


def row(wire):
    """What the one registration has counted."""
    (found,) = wire.ok("RG.DUMPREGISTRATIONS")
    return dict(zip(found[7][::2], found[7][1::2], strict=True))


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

        wire.ok("ACL", "SETUSER", "boss", "resetkeys", "~other")
        wire.ok("XADD", "s1", "*", "a", "1")
        wait_until(lambda: row(wire)[b"numFailures"] > 0, "the failure")
        assert b"NOPERM" in row(wire)[b"lastError"]
        wire.ok("ACL", "SETUSER", "boss", "~*")
        if policy == "continue":
            # Its entry waits for the next one.
            wire.ok("XADD", "s1", "*", "a", "2")
            wait_until(lambda: wire.ok("GET", "ran") == b"2", "both entries")
        elif policy == "retry":
            wait_until(lambda: wire.ok("GET", "ran") == b"1", "the next try")
        assert row(wire)[b"status"] == (b"ABORTED" if policy == "abort" else b"OK")
        wait_until(lambda: wire.ok("XLEN", "s1") == (1 if policy == "abort" else 0), "the stream's length")


def test_streams_are_trimmed_and_dead_letters_written_with_the_rights_of_the_user(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "%R~s*", "~own", "+@all")
        low.ok("AUTH", "low", "x")

        def register(stream, step, words):
            program = f"GB('StreamReader').foreach({step}).register('{stream}', mode='async_local', {words})"
            assert low.ok("RG.PYEXECUTE", program) == OK

        def row_of(stream):
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
            wait_until(lambda stream=stream: row_of(stream)[b"numFailures"] > 0, f"the failure of {stream}")
            assert b"NOPERM user 'low' may not" in row_of(stream)[b"lastError"] and why in row_of(stream)[b"lastError"]
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

        wait_until(lambda: row(wire)[b"numFailures"] > 0, "the failure")
        assert b"NOPERM" in row(wire)[b"lastError"] and wire.ok("XLEN", "s") == 1
        make_user(wire, "low")
        wire.ok("XADD", "s", "*", "a", "2")
        wait_until(lambda: wire.ok("XLEN", "s") == 0, "what had waited")


NEXT = "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='{}', mode='{}', convertToStr=False)"
PASSWORDS = {
    "config": ("CONFIG", "SET", "requirepass", "secret"),
    "acl": ("ACL", "SETUSER", "default", "resetpass", ">secret"),
}


@pytest.mark.parametrize("hook", PASSWORDS)
@pytest.mark.parametrize("how", ("sync", "async_local", "transaction", "script"))
def test_a_password_counts_at_once_for_commands_that_are_taken_over(fresh, hook, how):
    """However it is set: by a hooked command, or in a transaction in which code has run taken over ones before."""
    server = fresh()
    with Wire(server.port) as wire:
        wire.ok("SET", "private", "1")
        assert wire.ok("RG.PYEXECUTE", NEXT.format("get", "sync")) == OK
        if how in ("sync", "async_local"):
            assert wire.ok("RG.PYEXECUTE", NEXT.format(hook, how)) == OK
            wire.ok(*PASSWORDS[hook])
        else:
            handler = "GB().foreach(lambda x: execute('get', 'private')).register('k', mode='sync', eventTypes=['set'])"
            assert wire.ok("RG.PYEXECUTE", handler) == OK
            # Somebody has changed rights before.
            wire.ok("CONFIG", "SET", "maxmemory", "0")
            wire.ok("MULTI")
            if how == "transaction":
                wire.ok("SET", "k", "1")
            else:
                wire.ok("EVAL", "return redis.call('GET', KEYS[1])", "1", "private")
            wire.ok(*PASSWORDS[hook])
            assert wire.ok("EXEC")[1] == OK
        with Wire(server.port) as stranger:
            assert "NOAUTH" in stranger.error("GET", "private") and "NOAUTH" in stranger.error("SET", "k", "2")
            stranger.ok("AUTH", "secret")
            assert stranger.ok("GET", "private") == b"1"
            stranger.ok("ACL", "SETUSER", "default", "nopass")
        with Wire(server.port) as stranger:
            assert stranger.ok("GET", "private") == b"1"


@pytest.mark.parametrize("hook", PASSWORDS)
def test_a_password_of_a_transaction_that_begins_to_be_looked_at_within(fresh, hook):
    """The first hook is registered in the middle of it."""
    server = fresh()
    with Wire(server.port) as wire:
        wire.ok("SET", "private", "1")
        late = f"GB('CommandReader').foreach(lambda x: {NEXT.format('get', 'sync')}).register(trigger='t', mode='sync')"
        assert wire.ok("RG.PYEXECUTE", late) == OK
        wire.ok("MULTI")
        for command in (("RG.TRIGGER", "t"), ("EVAL", "return redis.call('GET', KEYS[1])", 1, "private")):
            wire.ok(*command)
        wire.ok(*PASSWORDS[hook])
        assert wire.ok("EXEC")[1:] == [b"1", OK]
        with Wire(server.port) as stranger:
            assert "NOAUTH" in stranger.error("GET", "private")


@pytest.mark.parametrize("hook", PASSWORDS)
@pytest.mark.parametrize("renamed", ("EXEC", "ACL", "CONFIG"))
def test_a_password_counts_where_commands_have_other_names(fresh, hook, renamed):
    server = fresh(server_args=("--rename-command", renamed, "other"))
    name = {renamed: "other"}
    with Wire(server.port) as wire:
        wire.ok("SET", "private", "1")
        assert wire.ok("RG.PYEXECUTE", NEXT.format("get", "sync")) == OK
        wire.ok("MULTI")
        password = PASSWORDS[hook]
        for command in (password, ("GET", "private")):
            wire.ok(name.get(command[0], command[0]), *command[1:])
        assert wire.ok(name.get("EXEC", "EXEC")) == [OK, b"1"]
        for _ in range(2):
            with Wire(server.port) as stranger:
                assert "NOAUTH" in stranger.error("GET", "private")


@pytest.mark.parametrize("hook", PASSWORDS)
@pytest.mark.parametrize("how", ("alone", "transaction", "again"))
def test_a_password_that_a_pause_holds_up_counts(fresh, hook, how):
    """Newer servers do not show what they held up to the filter again. `again`: another pause follows at once."""
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as admin, Wire(server.port) as other:
        wire.ok("SET", "private", "1")
        assert wire.ok("RG.PYEXECUTE", NEXT.format("get", "sync")) == OK
        assert wire.ok("GET", "private") == b"1"
        if how == "transaction":
            admin.ok("MULTI")
            admin.ok("SET", "k", "1")
            admin.ok(*PASSWORDS[hook])
            wire.ok("CLIENT", "PAUSE", 400, "WRITE")
            admin.send("EXEC")
        else:
            wire.ok("CLIENT", "PAUSE", 400)
            admin.send(*PASSWORDS[hook])
        # They wait as well, or look at the users meanwhile.
        for client in (other, wire):
            client.send("GET", "private")
        if how == "again":
            wire.send("CLIENT", "PAUSE", 100)
            wire.send("GET", "private")
        assert admin.read()[-1:] == [OK] if how == "transaction" else admin.read() == OK
        assert other.read() == wire.read() == b"1"
        if how == "again":
            assert (wire.read(), wire.read()) == (OK, b"1")
        for _ in range(3):
            with Wire(server.port) as stranger:
                for _ in range(3):
                    assert "NOAUTH" in stranger.error("GET", "private")
                stranger.ok("AUTH", "secret")
                assert stranger.ok("GET", "private") == b"1"
            time.sleep(0.6)


def test_values_that_the_user_may_not_read_by_commands(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~*", "+rg.pyexecute", "+scan", "+get", "+rpush")
        low.ok("AUTH", "low", "x")
        wire.ok("SET", "text", "1")
        wire.ok("HSET", "hash", "a", "1")

        def run(program):
            results, errors = low.ok("RG.PYEXECUTE", program)
            assert not (results and errors)
            return results or errors[0]

        values = "GB().map(lambda x: x['value'])"
        assert run(f"{values}.run('t*')") == [b"1"] and run(f"{values}.run('text', noScan=True)") == [b"1"]
        for refused in (f"{values}.run('h*')", f"{values}.run('hash', noScan=True)"):
            assert b"NOPERM" in run(refused) and b"hgetall" in run(refused)
        assert run("GB().map(lambda x: x['key']).run('h*', readValue=False)") == [b"hash"]
        assert run("GB().count().run()") == [b"2"]
        # What gives all keys, and what gives the command, are two things.
        rules = ("~only", "-get", "-scan", "(~* +scan)", "(~o* +get +scan)")
        wire.ok("ACL", "SETUSER", "low", "resetkeys", *rules)
        assert b"NOPERM" in run(f"{values}.run('t*')")
        # What most keys fit is not for all.
        for pattern in ("~*:*", "~[^t]*", "~?*", "~*any*", "%R~*x*"):
            wire.ok("ACL", "SETUSER", "low", "clearselectors", "resetkeys", "-get", "(~* +scan)", f"({pattern} +get)")
            assert b"NOPERM" in run(f"{values}.run('t*')")
        wire.ok("ACL", "SETUSER", "low", "clearselectors", "resetkeys", *rules)
        wire.ok("ACL", "SETUSER", "low", "(~* +get +scan)")
        assert run(f"{values}.run('t*')") == [b"1"]
        wire.ok("ACL", "SETUSER", "low", "clearselectors", "~*", "+get")
        note = "foreach(lambda x: execute('rpush', 'seen', str(x['value'])))"
        assert low.ok("RG.PYEXECUTE", f"GB().{note}.register('*', mode='sync', eventTypes=['set', 'hset'])") == OK
        wire.ok("SET", "text", "2")
        wire.ok("HSET", "hash", "a", "2")
        fields = row(wire)
        assert (fields[b"numSuccess"], fields[b"numFailures"]) == (1, 1) and b"hgetall" in fields[b"lastError"]
        assert wire.ok("LRANGE", "seen", 0, -1) == [b"2"]


@pytest.mark.parametrize("rights", ["resetkeys", "-get", None])
def test_a_walk_ends_with_the_rights_of_its_user(fresh, rights):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("EVAL", "for i = 1, 5000 do redis.call('SET', 'k' .. i, i) end", 0)
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~*", "+rg.pyexecute", "+scan", "+get", "+set")
        low.ok("AUTH", "low", "x")
        step = "lambda x: __import__('time').sleep(0.001) or x['value']"
        execution = low.ok("RG.PYEXECUTE", f"GB().map({step}).run()", "UNBLOCKING")
        wire.ok(*(("ACL", "SETUSER", "low", rights) if rights else ("ACL", "DELUSER", "low")))
        results, (error,) = wire.ok("RG.GETRESULTSBLOCKING", execution)
        assert b"NOPERM" in error and len(results) < 5000


@pytest.mark.parametrize("rules", [("%R~a", "+@read", "(~l +@all)"), ("~a", "+@read", "+@write", "(~l +@all)")])
def test_users_with_selectors_keep_their_own_rules(fresh, rules):
    """Command and key must come from the same rules, also of what is put in front."""
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", *rules)
        low.ok("AUTH", "low", "x")
        wire.ok("CONFIG", "SET", "requirepass", "secret")
        wire.ok("AUTH", "secret")
        assert wire.ok("RG.PYEXECUTE", "GB().foreach(lambda x: None).register('*', mode='sync')") == OK
        for command in (("TYPE", "a"), ("TTL", "a"), ("GET", "a"), ("LCS", "a", "a"), ("SET", "l", "1")):
            low.ok(*command)
        assert "NOPERM" in low.error("GET", "other")


def test_users_whose_names_are_no_text_keep_their_rights(fresh):
    server = fresh()
    name = b"\xff\xfe"
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", name, "reset", "on", ">x", "~*", "+get", "+set")
        low.ok("AUTH", name, "x")
        wire.ok("CONFIG", "SET", "requirepass", "secret")
        wire.ok("AUTH", "secret")
        assert wire.ok("RG.PYEXECUTE", "GB().foreach(lambda x: None).register('*', mode='sync')") == OK
        assert (low.ok("SET", "k", "1"), low.ok("GET", "k")) == (OK, b"1")


def test_what_a_hook_hands_to_an_older_one_is_checked_with_its_own_rights(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~low*", "+@all")
        low.ok("AUTH", "low", "x")
        assert wire.ok("RG.PYEXECUTE", NEXT.format("hset", "sync")) == OK
        other = "GB('CommandReader').map(lambda x: call_next(x[2], 'f', 'v')).register(hook='hset', mode='sync')"
        assert low.ok("RG.PYEXECUTE", other) == OK
        assert "NOPERM user 'low'" in low.error("HSET", "low", "secret", "x")
        assert low.call("HSET", "low", "low:2", "x") == b"1" and wire.ok("HGETALL", "low:2") == [b"f", b"v"]
        assert wire.ok("EXISTS", "secret") == 0


def test_selectors_that_give_other_keys_are_not_in_the_way(fresh):
    """The server wants command and keys of one selector, of the internal command as well."""
    server = fresh()
    with Wire(server.port) as wire:
        wire.ok("ACL", "SETUSER", "boss", "on", ">boss", "~*", "&*", "+@all")
        wire.ok("ACL", "SETUSER", "low", "on", ">low", "~a:*", "+@all", "(+get +set ~b:*)")
        wire.ok("CONFIG", "SET", "requirepass", "secret")
        with Wire(server.port) as boss, Wire(server.port) as low:
            boss.ok("AUTH", "boss", "boss")
            low.ok("AUTH", "low", "low")
            handler = "GB().foreach(lambda x: execute('incr', 'seen')).register('*', mode='sync', eventTypes=['set'])"
            assert boss.ok("RG.PYEXECUTE", handler) == OK
            for key in ("a:1", "b:1"):
                assert low.ok("SET", key, "v") == OK and low.ok("GET", key) == b"v"
            low.ok("MULTI")
            assert low.ok("SET", "b:1", "w") == Simple("QUEUED") and low.ok("EXEC") == [OK]
            wait_until(lambda: boss.ok("GET", "seen") == b"3", "the handlers")
            boss.ok("ACL", "SETUSER", "low", "clearselectors", "(+@all ~b:*)")
            assert low.ok("SET", "b:1", "v") == OK and boss.ok("GET", "seen") == b"4"


def test_subcommands_that_scripts_may_not_use_stay_so_when_they_are_hooked(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        make_user(wire, "low")
        low.ok("AUTH", "low", "x")
        for hook in ("acl", "config", "client"):
            assert wire.ok("RG.PYEXECUTE", NEXT.format(hook, "sync")) == OK
        for command in ("'ACL', 'DELUSER', 'low'", "'CONFIG', 'GET', 'maxmemory'", "'CLIENT', 'LIST'"):
            assert "not allowed from script" in low.error("EVAL", f"return redis.call({command})", 0)
        assert wire.ok("ACL", "USERS") == [b"default", b"low"]
        assert low.ok("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"0"]


def test_rules_for_databases(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        make_user(wire, "low")
        # Only Valkey has such rules; elsewhere the user has all rights.
        has_rules = wire.call("ACL", "SETUSER", "low", "resetdbs", "db=0") == OK
        low.ok("AUTH", "low", "x")
        wire.ok("SET", "k", "1")
        assert wire.ok("RG.PYEXECUTE", NEXT.format("get", "sync")) == OK
        assert wire.ok("RG.PYEXECUTE", "GB().foreach(lambda x: None).register('*', mode='sync')") == OK
        assert low.ok("GET", "k") == b"1" and low.ok("SET", "k", "2") == OK
        run = "GB('ShardsIDReader').map(lambda x: (execute('set', 'k', '3'), execute('get', 'k'))).run()"
        assert low.ok("RG.PYEXECUTE", run) == [[b"('OK', '3')"], []]
        if not has_rules:
            return
        # What its hook hands on counts in the database of the client.
        assert wire.ok("RG.PYEXECUTE", NEXT.format("hset", "sync")) == OK
        own = "GB('CommandReader').map(lambda x: call_next('own', 'f', '1')).register(hook='hset', mode='sync')"
        assert low.ok("RG.PYEXECUTE", own) == OK
        assert wire.ok("HSET", "h", "f", "1") == b"1"
        with Wire(server.port) as other:
            other.ok("SELECT", 1)
            assert "NOPERM" in other.error("HSET", "h", "f", "1") and other.ok("EXISTS", "own") == 0
            wire.ok("ACL", "SETUSER", "low", "resetdbs", "db=1")
            assert other.ok("HSET", "h", "f", "1") == b"1"
        assert "NOPERM" in low.error("GET", "k") and "NOPERM" in low.error("SET", "k", "4")
        assert b"NOPERM" in low.ok("RG.PYEXECUTE", run)[1][0]


@pytest.mark.parametrize("group", ("sharedGroup=True", "group='team'"))
def test_a_group_of_others_needs_the_right_to_be_its_member(fresh, group):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "%R~s", "+@all")
        low.ok("AUTH", "low", "x")
        words = f"mode='async_local', trimStream=False, {group}"
        assert low.ok("RG.PYEXECUTE", f"GB('StreamReader').foreach(lambda x: None).register('s', {words})") == OK
        wire.ok("XADD", "s", "*", "a", "1")

        wait_until(lambda: row(wire)[b"numFailures"] > 0, "the failure")
        assert b"member of a group" in row(wire)[b"lastError"] and wire.ok("XINFO", "GROUPS", "s") == []
        wire.ok("ACL", "SETUSER", "low", "~s")
        wire.ok("XADD", "s", "*", "a", "1")
        wait_until(lambda: row(wire)[b"numSuccess"] > 1, "both entries")


def test_a_user_whose_name_is_no_utf8_is_nobody_else(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as odd:
        wire.ok("SET", "secret", "1")
        wire.ok("ACL", "SETUSER", b"us\xffer", "reset", "on", "nopass", "~own", "+@all")
        # So it looks as a text.
        wire.ok("ACL", "SETUSER", "us\ufffder", "reset", "on", "nopass", "~*", "+@all")
        odd.ok("AUTH", b"us\xffer", "x")
        for key in ("secret", "own"):
            _, (error,) = odd.ok("RG.PYEXECUTE", f"GB('ShardsIDReader').map(lambda x: execute('get', '{key}')).run()")
            assert b"NOPERM" in error
        assert wire.ok("RG.PYEXECUTE", NEXT.format("get", "sync")) == OK
        assert "NOPERM" in odd.error("GET", "secret")
