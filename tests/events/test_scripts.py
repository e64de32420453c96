"""Scripts of the server whose commands run functions: there is one interpreter for scripts, and it is in use then."""

import pytest
from registrations import register
from replies import is_error
from wire import Error, Simple

pytestmark = pytest.mark.matrix

LIBRARY = """#!lua name=lib
redis.register_function('seven', function() return 7 end)
redis.register_function('fire', function(keys, args) return redis.call('RG.TRIGGER', 't', unpack(args)) end)
"""
TRIGGER = "return redis.call('RG.TRIGGER', 't', unpack(ARGV))"


@pytest.fixture
def scripts(wire):
    wire.ok("FUNCTION", "FLUSH")
    wire.ok("FUNCTION", "LOAD", LIBRARY)
    register(wire, "GB('CommandReader').map(lambda x: execute(*x[1:])).register(trigger='t', mode='sync')")
    yield wire
    wire.ok("FUNCTION", "FLUSH")


@pytest.mark.parametrize(
    "command",
    [
        ("EVAL", "return 7", "0"),
        ("eval_ro", "return 7", "0"),
        ("EVALSHA", "0" * 40, "0"),
        ("FCALL", "seven", "0"),
        ("SCRIPT", "FLUSH"),
        ("SCRIPT", "LOAD", "return 7"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "DELETE", "lib"),
        ("FUNCTION", "LOAD", "REPLACE", LIBRARY),
    ],
    ids=lambda command: " ".join(command)[:20],
)
def test_functions_within_a_script_run_and_change_no_scripts(scripts, command):
    for fire in (("EVAL", TRIGGER, "0"), ("FCALL", "fire", "0")):
        is_error(scripts.call(*fire, *command), "is for scripts")
        scripts.ok("MULTI")
        scripts.ok(*fire, *command)
        is_error(scripts.ok("EXEC")[0], "is for scripts")
    # The scripts are whole, and so is the connection.
    assert scripts.ok("FCALL", "seven", "0") == 7
    assert scripts.ok("EVAL", "return 8", "0") == 8
    # Outside of scripts it is allowed.
    assert not isinstance(scripts.call("RG.TRIGGER", "t", "EVAL", "return 7", "0"), Error)


def test_handlers_of_what_a_script_writes(wire):
    register(
        wire,
        """
def f(x):
    try:
        execute('eval', 'return 7', '0')
    except Exception as e:
        execute('set', 'error', str(e))
    execute('incr', 'handled')
GB().foreach(f).register('k*', eventTypes=['set'], mode='sync')
""",
    )
    assert wire.ok("EVAL", "return redis.call('SET', KEYS[1], 'v')", "1", "k1") == Simple("OK")
    assert wire.ok("GET", "handled") == b"1" and b"is for scripts" in wire.ok("GET", "error")
    assert wire.ok("SET", "k1", "v") == Simple("OK")
    assert wire.ok("GET", "handled") == b"2"
