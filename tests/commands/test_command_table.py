"""How the server lists the module and its commands."""

import pytest
from wire import Simple, Wire

# Name -> whether it takes arguments.
COMMANDS = {
    "rg.pyexecute": True,
    "rg.getexecution": True,
    "rg.getresults": True,
    "rg.getresultsblocking": True,
    "rg.dumpexecutions": False,
    "rg.abortexecution": True,
    "rg.dropexecution": True,
    "rg.trigger": True,
    "rg.dumpregistrations": False,
    "rg.unregister": True,
    "rg.pauseregistrations": True,
    "rg.unpauseregistrations": True,
    "rg.clearregistrationsstats": False,
    "rg.pydumpsessions": True,
    "rg.registry": True,
    "rg.configget": True,
    "rg.configset": True,
    "rg.infocluster": False,
    "rg.refreshcluster": False,
    "rg.pystats": False,
    "rg.dumpplugins": False,
    "rg.pyfreeinterpreter": False,
    "rg.pyexecuteremote": False,
}


def listed_module(wire):
    (module,) = [dict(zip(row[::2], row[1::2], strict=True)) for row in wire.ok("MODULE", "LIST") if row[1] == b"rg"]
    return module


def text(value):
    return value.text if isinstance(value, Simple) else value.decode()


def test_module_list(wire):
    assert listed_module(wire)[b"ver"] == 10213


@pytest.mark.parametrize("name", COMMANDS)
def test_command_info(wire, name):
    (row,) = wire.ok("COMMAND", "INFO", name)
    assert row is not None, "the command is missing"
    assert row[0].decode().lower() == name
    assert row[1] == -1
    # The server itself adds `module`. What may write while the server pauses writes says so.
    assert {text(flag) for flag in row[2]} - {"module", "may_replicate"} == {"readonly"}
    assert row[3:6] == [0, 0, 0]


def test_the_key_of_triggeronkey(wire):
    (row,) = wire.ok("COMMAND", "INFO", "rg.triggeronkey")
    assert row[3:6] == [2, 2, 1]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_names_are_case_insensitive(wire, name):
    (lower,), (upper,) = wire.ok("COMMAND", "INFO", name), wire.ok("COMMAND", "INFO", name.upper())
    assert lower == upper


@pytest.mark.parametrize("name", COMMANDS)
def test_command_docs(wire, name):
    found, fields = wire.ok("COMMAND", "DOCS", name)
    assert found.decode().lower() == name
    docs = {text(key): value for key, value in zip(fields[::2], fields[1::2], strict=True)}
    assert len(docs["summary"]) > 10
    assert docs["group"] == b"module"
    if COMMANDS[name]:
        for argument in docs["arguments"]:
            described = {text(key): value for key, value in zip(argument[::2], argument[1::2], strict=True)}
            assert described["name"] and described["type"]
    else:
        assert not docs.get("arguments")


def test_options_of_pyexecute_are_documented(wire):
    _, fields = wire.ok("COMMAND", "DOCS", "rg.pyexecute")
    told = repr(fields).upper()
    for word in ("SCRIPT", "UNBLOCKING", "ID", "DESCRIPTION", "UPGRADE", "REPLACE_WITH", "REQUIREMENTS"):
        assert word in told
    _, fields = wire.ok("COMMAND", "DOCS", "rg.getexecution")
    assert "SHARD" in repr(fields).upper() and "CLUSTER" in repr(fields).upper()


def test_no_command_is_without_docs(wire):
    """Whatever else the module registers."""
    names = [name for name in wire.ok("COMMAND", "LIST", "FILTERBY", "MODULE", "rg")]
    assert {name.decode().lower() for name in names} >= set(COMMANDS)
    for name in names:
        _, fields = wire.ok("COMMAND", "DOCS", name)
        assert b"summary" in fields, name


def test_keyless_commands_are_served_by_every_node(wires):
    for wire in wires:
        assert wire.call("RG.PYEXECUTE", "x = 1") == Simple("OK")
        assert isinstance(wire.ok("RG.DUMPEXECUTIONS"), list)


def test_unload_is_refused_with_a_reason(fresh):
    server = fresh(server_args=("--enable-module-command", "yes"))
    with Wire(server.port) as wire:
        # The server itself refuses modules whose data it has: the registry travels in its dumps.
        text = wire.error("MODULE", "UNLOAD", "rg").lower()
        assert "unload" in text and "data type" in text
        assert listed_module(wire)[b"ver"] == 10213
        assert wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()") == [[b"1"], []]


def test_access_rights(wire, server):
    """Module commands are granted by name; without the right nothing runs."""
    wire.ok("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+get", "+rg.dumpexecutions")
    try:
        with Wire(server.port) as other:
            other.ok("AUTH", "reader", "pw")
            assert isinstance(other.ok("RG.DUMPEXECUTIONS"), list)
            assert other.error("RG.PYEXECUTE", "execute('set', 'ran', '1')").startswith("NOPERM")
        assert wire.ok("EXISTS", "ran") == 0
    finally:
        wire.ok("ACL", "DELUSER", "reader")


CATEGORIES = {
    "rg.pyexecute": {"@admin", "@slow", "@dangerous"},
    "rg.unregister": {"@admin", "@slow", "@dangerous"},
    "rg.dumpregistrations": {"@slow", "@dangerous"},
    "rg.trigger": {"@write", "@slow"},
    "rg.innerhook": set(),
}


@pytest.mark.matrix
def test_categories(wire):
    rows = wire.ok("COMMAND", "INFO", *CATEGORIES)
    found = {name: {one.text for one in row[6]} for name, row in zip(CATEGORIES, rows, strict=True)}
    old = wire.ok("INFO", "server").split(b"redis_version:")[1].startswith((b"7.0", b"7.2"))
    valkey = b"valkey_version" in wire.ok("INFO", "server")
    assert found == (CATEGORIES if valkey or not old else {name: set() for name in CATEGORIES})


@pytest.mark.matrix
def test_a_permission_that_is_required_beside_the_command(fresh):
    server = fresh("RequiredPermission", "config|set")
    refused = "RequiredPermission"
    with Wire(server.port) as wire, Wire(server.port) as low:
        nested = "execute('rg.configset', 'x', 'y')"
        trigger = f"GB('CommandReader').map(lambda x: {nested}).register(trigger='t', mode='sync')"
        assert wire.ok("RG.PYEXECUTE", trigger) == Simple("OK") and wire.ok("RG.TRIGGER", "t")
        # Of scripts, too, and of code without a user.
        assert wire.ok("EVAL", "return #redis.call('RG.CONFIGSET', 'a', 'b')", 0) == 1
        assert wire.ok("RG.PYEXECUTE", f"GB('ShardsIDReader').map(lambda x: {nested}).run()")[1] == []
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~*", "+@all", "-config|set")
        low.ok("AUTH", "low", "x")
        for command in (("RG.PYEXECUTE", "1"), ("RG.CONFIGSET", "a", "b"), ("RG.UNREGISTER", "1")):
            assert refused in low.error(*command)
        assert refused in low.error("EVAL", "return redis.call('RG.CONFIGSET', 'a', 'b')", 0)
        assert low.ok("RG.TRIGGER", "t") and low.ok("RG.CONFIGGET", "a") and low.ok("RG.DUMPREGISTRATIONS")
        wire.ok("ACL", "SETUSER", "low", "+config|set")
        assert low.ok("RG.PYEXECUTE", "1") == Simple("OK")
        assert low.ok("RG.PYEXECUTE", f"GB('ShardsIDReader').map(lambda x: {nested}).run()")[1] == []


@pytest.mark.matrix
@pytest.mark.parametrize("command", ["set", "publish", "zunion", "georadius"])
def test_a_required_permission_is_for_the_command_alone(fresh, command):
    """Whatever keys and channels its user may name."""
    server = fresh("RequiredPermission", command)
    with Wire(server.port) as wire, Wire(server.port) as low:
        wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~app:*", "+rg.pyexecute")
        low.ok("AUTH", "low", "x")
        assert "RequiredPermission" in low.error("RG.PYEXECUTE", "1")
        wire.ok("ACL", "SETUSER", "low", f"+{command}")
        assert low.ok("RG.PYEXECUTE", "1") == Simple("OK")
