"""Sessions go when nothing uses them any more, whatever their globals refer to, and not before."""

import pytest
from registrations import dump, register
from replies import wait_until
from wire import Simple

pytestmark = pytest.mark.matrix

OK = Simple("OK")
UPGRADES = 30

# Each version of a session has a marker in its globals.
HEAD = """
import asyncio, contextvars, time
class Marker:
    pass
marker = Marker()
"""
LIVING = """
import gc
def living(x):
    gc.collect()
    return sum(type(one).__name__ == 'Marker' and one.of == {of!r} for one in gc.get_objects())
GB('ShardsIDReader').map(living).run()
"""


def marked(of, script):
    return f"{HEAD}marker.of = {of!r}\n{script}"


def living(wire, of):
    """How many sessions of such scripts are there."""
    (found,), errors = wire.ok("RG.PYEXECUTE", LIVING.format(of=of))
    assert errors == []
    return int(found)


def wait_living(wire, of, count):
    wait_until(lambda: living(wire, of) == count, f"{count} sessions being left")


def unregister_all(wire):
    for one in wire.ok("RG.DUMPREGISTRATIONS"):
        assert wire.ok("RG.UNREGISTER", one[1]) == OK


# --- what globals hold ----------------------------------------------------------------------------------------------

# The body of a script, which defines what its trigger calls.
NOTHING = "def begin(x): pass"
SCENES = {
    "nothing": NOTHING,
    "session": f"s = getGearsSession()\n{NOTHING}",
    "session in a block": f"block = GearsSession(getGearsSession())\n{NOTHING}",
    "callback": f"f = createFuture()\nf.add_done_callback(lambda over: None)\n{NOTHING}",
    "task": """
async def begin(x):
    global task
    task = asyncio.ensure_future(asyncio.sleep(0))
    await task""",
    "own task": """
async def begin(x):
    global task
    task = asyncio.current_task()""",
    "timer": """
async def begin(x):
    global timer
    fired = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(0.001, fired.set)
    await fired.wait()""",
    "gather": """
async def begin(x):
    global both
    both = asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
    await both""",
    "exception": """
async def begin(x):
    global error
    try:
        await asyncio.wait_for(asyncio.sleep(60), 0.001)
    except asyncio.TimeoutError as raised:
        error = raised""",
    "context": """
async def begin(x):
    global context
    context = contextvars.copy_context()""",
    "worker": """
queue = asyncio.Queue()
async def work():
    while True:
        await queue.get()
        queue.task_done()
async def begin(x):
    # Not in the script: a queue for which somebody waits can not be pickled with the function.
    runCoroutine(work())
    queue.put_nowait(1)
    await queue.join()""",
    "waiting coroutine": """
future = createFuture()
async def wait():
    await future
runCoroutine(wait(), s=getGearsSession())
def begin(x): pass""",
    "future that was not returned": """
kept = []
async def give():
    return [kept, marker]
def begin(x):
    kept.append(gearsFuture())
    runCoroutine(give(), kept[-1])""",
    "future that failed": """
kept = []
def begin(x):
    later = gearsFuture()
    kept.append(later)
    async def give():
        return [marker, later]
    runCoroutine(give(), later)
    raise ValueError""",
}


@pytest.mark.parametrize("scene", SCENES)
def test_replaced_sessions_go(wire, scene):
    trigger = "GB('CommandReader').map(begin).register(trigger='begin', mode='async_local')"
    script = marked(scene, f"{SCENES[scene]}\n{trigger}")
    for _ in range(UPGRADES):
        register(wire, script, "ID", "s", "UPGRADE")
        wire.call("RG.TRIGGER", "begin")
    wait_living(wire, scene, 1)
    unregister_all(wire)
    wait_living(wire, scene, 0)


HOOKS = {
    "task": """
async def hook(x):
    global task
    task = asyncio.current_task()
    return call_next(*x[1:])""",
    "worker": """
queue = asyncio.Queue()
async def work():
    while True:
        done = await queue.get()
        setFutureResults(done, call_next('h', 'a', '1'))
async def hook(x):
    runCoroutine(work())
    done = createFuture()
    queue.put_nowait(done)
    return await done""",
}


@pytest.mark.parametrize("hook", HOOKS)
def test_replaced_sessions_of_hooks_go(wire, hook):
    # Whoever calls the next hook has that one's session, too.
    of = f"hook with a {hook}"
    older = marked(of, "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='hset', mode='sync')")
    newer = marked(of, f"{HOOKS[hook]}\nGB('CommandReader').map(hook).register(hook='hset', mode='async_local')")
    for _ in range(UPGRADES):
        # A hook of another mode must be the newest one.
        unregister_all(wire)
        register(wire, older, "ID", "older", "UPGRADE")
        register(wire, newer, "ID", "newer", "UPGRADE")
        assert int(wire.ok("HSET", "h", "a", "1")) in (0, 1)
    wait_living(wire, of, 2)
    unregister_all(wire)
    wait_living(wire, of, 0)


def test_scripts_that_register_nothing_go(wire):
    for _ in range(UPGRADES):
        wire.ok("RG.PYEXECUTE", marked("script", "s = getGearsSession()"))
    wait_living(wire, "script", 0)


# --- what is still in use -------------------------------------------------------------------------------------------

# What code that waits for a key finds then: its globals, its rights, and a session to register in.
LOOK = """
looks = 0
def look():
    global looks
    looks += 1
    try:
        found = execute('get', 'secret')
    except Exception as error:
        found = 'refused' if 'access' in str(error) or 'NOPERM' in str(error) else str(error)
    execute('rpush', 'seen', type(marker).__name__, looks, found)
    GB('CommandReader').map(lambda x: looks).register(trigger='made', mode='sync')
"""
COROUTINE = f"""{LOOK}
async def stay():
    while execute('exists', 'go') == 0:
        await asyncio.sleep(0.005)
    await asyncio.ensure_future(asyncio.sleep(0))
    execute('rpush', 'seen', str(await GB('ShardsIDReader').map(lambda x: looks).run()))
    again = createFuture()
    asyncio.get_running_loop().call_later(0.001, lambda: again.set_result(look()))
    await again
    execute('set', 'over', 1)
def begin(x):
    runCoroutine(stay())
GB('CommandReader').map(begin).register(trigger='begin', mode='async_local')
"""
THREAD = f"""{LOOK}
def stay(session):
    registerGearsThread()
    with GearsSession(session):
        execute('set', 'inside', 1)
        while execute('exists', 'go') == 0:
            time.sleep(0.005)
        look()
    execute('set', 'over', 1)
def begin(x):
    Thread(target=stay, args=(getGearsSession(),)).start()
GB('CommandReader').map(begin).register(trigger='begin', mode='async_local')
"""


def let_go(wire, of):
    """What waits goes on, after some collections, and comes to its end."""
    for _ in range(3):
        assert living(wire, of) == 1
    wire.ok("SET", "go", "1")
    wait_until(lambda: wire.ok("EXISTS", "over"), "the end of what the session runs")


def made_in(wire):
    """The session of what it has registered."""
    return [one.pd["sessionName"] for one in dump(wire).values() if one.trigger == b"made"]


def test_a_coroutine_goes_on_after_its_session_was_replaced(wire, other_wire):
    wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~seen", "~go", "~over", "&*", "+@all")
    wire.ok("SET", "secret", "s")
    other_wire.ok("AUTH", "low", "x")
    register(other_wire, marked("replaced", COROUTINE), "ID", "s")
    wire.ok("RG.TRIGGER", "begin")
    for _ in range(3):
        register(wire, "GB('CommandReader').register(trigger='other')", "ID", "s", "UPGRADE")
    let_go(wire, "replaced")
    assert wire.ok("LRANGE", "seen", 0, -1) == [b"[['0'], []]", b"Marker", b"1", b"refused"]
    assert (made_in(wire), wire.ok("RG.TRIGGER", "made")) == (["s"], [b"1"])
    wire.ok("ACL", "DELUSER", "low")


def test_a_thread_keeps_its_session(wire):
    wire.ok("SET", "secret", "s")
    register(wire, marked("thread", THREAD), "ID", "s")
    wire.ok("RG.TRIGGER", "begin")
    wait_until(lambda: wire.ok("EXISTS", "inside"), "the thread")
    unregister_all(wire)
    let_go(wire, "thread")
    assert wire.ok("LRANGE", "seen", 0, -1) == [b"Marker", b"1", b"s"]
    assert (made_in(wire), wire.ok("RG.TRIGGER", "made")) == (["s"], [b"1"])


OLDER = """
def hook(x):
    execute('incr', 'older')
    return call_next(*x[1:])
GB('CommandReader').map(hook).register(hook='hset', mode='sync')
"""
NEWER = """
async def later(x):
    while execute('exists', 'go') == 0:
        await asyncio.sleep(0.005)
    execute('set', 'said', call_next(*x[1:]))
    execute('set', 'over', 1)
def hook(x):
    runCoroutine(later(x))
    return 'begun'
GB('CommandReader').map(hook).register(hook='hset', mode='sync')
"""


def test_what_a_hook_has_started_calls_the_next_one_afterwards(wire):
    register(wire, OLDER)
    register(wire, marked("hook", NEWER))
    assert wire.ok("HSET", "h", "a", "1") == b"begun"
    # What is known of the commands is made anew.
    register(wire, "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='hdel', mode='sync')")
    let_go(wire, "hook")
    assert (wire.ok("GET", "older"), wire.ok("GET", "said"), wire.ok("HGET", "h", "a")) == (b"1", b"1", b"1")


CALLBACK = f"""{LOOK}
async def begin(x):
    GB('ShardsIDReader').count().run().add_done_callback(lambda over: look())
GB('CommandReader').map(begin).register(trigger='begin', mode='async_local')
"""


def test_a_callback_of_a_run_has_the_session_of_who_gave_it(wire, other_wire):
    # Whose session needs the event loop first.
    register(wire, "runCoroutine(asyncio.sleep(0))", "ID", "first")
    wire.ok("ACL", "SETUSER", "low", "reset", "on", "nopass", "~seen", "&*", "+@all")
    wire.ok("SET", "secret", "s")
    other_wire.ok("AUTH", "low", "x")
    register(other_wire, marked("callback", CALLBACK), "ID", "s")
    wire.ok("RG.TRIGGER", "begin")
    wait_until(lambda: wire.ok("LLEN", "seen") == 3, "the callback")
    assert wire.ok("LRANGE", "seen", 0, -1) == [b"Marker", b"1", b"refused"]
    wait_until(lambda: made_in(wire) == ["s"], "what it registers")
    wire.ok("ACL", "DELUSER", "low")


@pytest.mark.parametrize("script", [COROUTINE, THREAD], ids=["coroutine", "thread"])
def test_a_session_goes_with_the_last_that_it_runs(wire, script):
    of = f"last {script}"
    register(wire, marked(of, f"{script}\nown = getGearsSession()"), "ID", "s")
    wire.ok("RG.TRIGGER", "begin")
    unregister_all(wire)
    let_go(wire, of)
    # Until then what it has registered keeps it.
    assert living(wire, of) == 1
    unregister_all(wire)
    wait_living(wire, of, 0)


# --- what finalisers and callbacks of nobody leave ------------------------------------------------------------------

LEAVER = """
class Leaver:
    def __init__(self):
        self.session = getGearsSession()
        self.itself = self
    def __del__(self):
        {what}
        execute('rpush', 'left', str(getGearsSession()))
leaver = Leaver()
GB('CommandReader').register(trigger='t')
"""


@pytest.mark.parametrize(
    "what",
    ["atomic().__enter__()", "setGearsSession(self.session)", "registerGearsThread()"],
    ids=["block", "session", "thread"],
)
def test_what_a_finaliser_leaves_does_not_stay(wire, what):
    for count, text in enumerate((what, "pass", "pass"), 1):
        register(wire, LEAVER.format(what=text), "ID", "s", "UPGRADE")
        register(wire, "GB('CommandReader').register(trigger='t')", "ID", "s", "UPGRADE")
        wait_until(lambda count=count: wire.ok("LLEN", "left") == count, "the finaliser")
        assert wire.call("PING") == Simple("PONG")
    assert wire.ok("LRANGE", "left", 1, -1) == [b"None"] * 2


CALLED = """
import threading, time
def leave():
    {what}
def look():
    execute('rpush', 'left', str(getGearsSession()))
sessions = []
def call(loop):
    loop.call_soon_threadsafe(leave)
    # In a later turn of the loop.
    time.sleep(0.05)
    loop.call_soon_threadsafe(look)
def begin(x):
    sessions.append(getGearsSession())
    thread = threading.Thread(target=call, args=(createFuture().get_loop(),))
    thread.start()
    thread.join()
GB('CommandReader').map(begin).register(trigger='t', mode='async_local')
"""


@pytest.mark.parametrize("what", ["atomic().__enter__()", "setGearsSession(sessions[0])"], ids=["block", "session"])
def test_what_a_callback_of_a_thread_leaves_does_not_stay(wire, what):
    """It is nobody's, and runs on the thread of the loop, which is that of all."""
    register(wire, CALLED.format(what=what))
    for count in (1, 2):
        assert len(wire.ok("RG.TRIGGER", "t")) == 1
        wait_until(lambda count=count: wire.ok("LLEN", "left") == count, "the callback")
    assert wire.ok("LRANGE", "left", 0, -1) == [b"None"] * 2
    assert wire.call("PING") == Simple("PONG")
