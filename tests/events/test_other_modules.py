"""Other modules beside ours: their commands, and the commands that they run, are theirs."""

import other_module
import pytest
from firing import NOTE, counters, listed, settled
from registrations import MODES, register
from replies import wait_until
from wire import Simple, Wire

pytestmark = pytest.mark.matrix

MODE = pytest.mark.parametrize("mode", MODES)
LOADING = ("--enable-module-command", "yes")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Path of the other module."""
    return other_module.build(tmp_path_factory.mktemp("other"))


@pytest.fixture
def beside(fresh, other):
    """A connection to a server that has both."""
    with Wire(fresh(server_args=("--loadmodule", str(other))).port) as wire:
        yield wire


def watch(wire, mode, prefix="k:*"):
    register(wire, f"GB().foreach({NOTE}).register({prefix!r}, mode={mode!r})")


@MODE
def test_a_command_that_waits_may_do_so(beside, mode):
    watch(beside, mode)
    assert beside.ok("OTHER.WAIT", "k:1") == Simple("waited")


@MODE
@pytest.mark.parametrize("within", [False, True], ids=["alone", "within a command that is taken over"])
def test_what_a_command_runs_fires(beside, mode, within):
    """Within a command with a hook or a link, which is taken over, too."""
    watch(beside, mode)
    if within:
        register(beside, "GB().foreach(lambda x: None).register('x*', commands=['other.run'], mode='sync')")
        register(beside, "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='other.run', mode='sync')")
    assert beside.ok("OTHER.RUN", "k:1", "SET", "k:1", "a") in (Simple("OK"), b"OK")
    assert beside.ok("OTHER.RUN", "k:1", "EVAL", "return redis.call('rpush', 'k:2', 'a')", "0") in (1, b"1")
    settled(beside)
    assert beside.ok("GET", "k:1") == b"a"
    assert listed(beside) == ["set:k:1:string", "rpush:k:2:list"]


@MODE
def test_what_a_listener_writes_is_written_and_fires(beside, mode):
    watch(beside, mode, "noted:*")
    watch(beside, mode)
    for _ in range(3):
        assert beside.ok("SET", "noted:1", "a") == Simple("OK")
    assert beside.ok("GET", "k:notes") == b"3"
    settled(beside)
    seen = sorted(listed(beside))
    assert seen == ["incrby:k:notes:string"] * 3 + ["set:noted:1:string"] * 3
    assert counters(beside) == counters(beside, 1) == (3, 3, 0, 0)


def test_a_module_that_comes_later_is_taken_notice_of(fresh, other):
    server = fresh(server_args=LOADING)
    with Wire(server.port) as wire:
        wire.ok("MODULE", "LOAD", str(other))
        register(wire, "GB('CommandReader').map(lambda x: 'hooked').register(hook='other.wait', mode='sync')")
        assert wire.ok("OTHER.WAIT", "k:1") == b"hooked"
        wire.ok("SAVE")
    server.restart()
    with Wire(server.port) as wire:
        wait_until(lambda: len(wire.ok("RG.DUMPREGISTRATIONS")) == 1, "the registration that was saved")
        wire.ok("MODULE", "LOAD", str(other))
        assert wire.ok("OTHER.WAIT", "k:1") == b"hooked"
        wire.ok("MODULE", "UNLOAD", "other")
        assert "unknown command" in wire.error("OTHER.WAIT", "k:1")
        wire.ok("MODULE", "LOAD", str(other))
        assert wire.ok("OTHER.WAIT", "k:1") == b"hooked"


VECTOR = ("VADD", "v", "VALUES", "2", "1", "2")


@MODE
def test_vector_sets_use_no_threads_in_functions(fresh, mode):
    """The threads of their module can not answer a function. Only Redis 8 has them."""
    with Wire(fresh().port) as wire:
        register(wire, f"GB('CommandReader').map(lambda x: execute(*x[1:])).register(trigger='t', mode={mode!r})")
        if wire.ok("COMMAND", "INFO", "VADD") == [None]:
            assert "unknown command" in wire.error("RG.TRIGGER", "t", *VECTOR, "a").lower()
            return
        hook = "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook={!r}, mode={!r}, convertToStr=False)"
        assert wire.ok("RG.TRIGGER", "t", *VECTOR, "a", "CAS") == [b"1"]
        assert wire.ok("RG.TRIGGER", "t", "VSIM", "v", "ELE", "a") == [b"['a']"]
        for command in "VADD", "VSIM":
            register(wire, hook.format(command, "sync" if mode == "async" else mode))
        assert wire.ok(*VECTOR, "CAS", "CAS") == 1
        assert sorted(wire.ok("VSIM", "v", "ELE", "a")) == [b"CAS", b"a"]
