"""Coroutines, futures, awaited runs (Y1-Y22 of the specification), sync runs that go on later, what may not wait."""

import threading
import time

import pytest
from cleaning import leave_nothing
from registrations import NO_BLOCKING, by_trigger, dump, register, trigger
from replies import wait_until
from wire import Error, Simple, Wire

pytestmark = pytest.mark.matrix

NOT_ALLOWED = "Creating async record is not allowed"
OK, QUEUED = Simple("OK"), Simple("QUEUED")
HEAD = """import asyncio
def src():
    for v in VALUES:
        yield v
PR = GB('PythonReader')
"""


def run(wire, program, values="[1]"):
    """Results and errors of a program over values, as texts."""
    results, errors = wire.ok("RG.PYEXECUTE", HEAD.replace("VALUES", values) + program)
    return [text(one) for one in results], [text(one) for one in errors]


def text(value):
    return value.decode() if isinstance(value, bytes) else value


FIVE = "range(5)"
Y = [
    (
        "Y1",
        FIVE,
        """async def f(x):
    await asyncio.sleep(0.05 * (5 - x))
    return x * 10
PR.map(f).run(src)""",
        ["0", "10", "20", "30", "40"],
        [],
    ),
    (
        "Y2",
        FIVE,
        "async def f(x):\n    await asyncio.sleep(0.01)\n    return x % 2\nPR.filter(f).run(src)",
        ["1", "3"],
        [],
    ),
    (
        "Y3",
        "[5]",
        """async def f(x):
    await asyncio.sleep(0.01)
    return [x, -1, 9]
PR.flatmap(f).map(lambda x: 'v%s' % x).run(src)""",
        ["v5", "v-1", "v9"],
        [],
    ),
    (
        "Y3-fast",
        "[5]",
        "async def f(x): return [x, 9]\nPR.flatmap(f).map(lambda x: 'v%s' % x).run(src)",
        ["v5", "v9"],
        [],
    ),
    ("Y4", "range(3)", "async def f(x): return 'no'\nPR.foreach(f).run(src)", ["0", "1", "2"], []),
    (
        "Y5",
        FIVE,
        "async def f(a, x):\n    await asyncio.sleep(0.001)\n    return (a or 0) + x\nPR.accumulate(f).run(src)",
        ["10"],
        [],
    ),
    (
        "Y6",
        FIVE,
        """async def f(k, a, x):
    await asyncio.sleep(0.001)
    return (a or 0) + x
PR.groupby(lambda x: x % 2, f).map(lambda r: (r['key'], r['value'])).sort().run(src)""",
        ["('0', 6)", "('1', 4)"],
        [],
    ),
    (
        "Y7",
        FIVE,
        """async def f(x):
    await asyncio.sleep(0.02)
    if x == 2: raise ValueError('two')
    return x
PR.map(f).run(src)""",
        ["0", "1", "3", "4"],
        ["two"],
    ),
    (
        "Y8-extractor",
        "[1]",
        "async def f(x): return x\nPR.repartition(f).run(src)",
        [],
        ["coroutine are not allow on extractor"],
    ),
    (
        "Y8-reducer",
        "[1]",
        "async def f(k, l): return l\nPR.batchgroupby(lambda x: x, f).run(src)",
        [],
        ["coroutine are not allow on reduce"],
    ),
    (
        "Y9",
        "[1]",
        """def go(fut):
    time.sleep(0.05)
    fut.continueRun('from thread')
    try:
        fut.continueRun(1)
    except Exception as e:
        execute('set', 'second', str(e))
def f(x):
    fut = gearsFuture()
    Thread(target=go, args=(fut,)).start()
    return fut
PR.map(f).run(src)""",
        ["from thread"],
        [],
    ),
    (
        "Y10",
        "[1]",
        """def f(x):
    fut = gearsFuture()
    Thread(target=lambda: (time.sleep(0.05), fut.continueFailed('thread failed'))).start()
    return fut
PR.map(f).run(src)""",
        [],
        ["thread failed"],
    ),
    ("Y11", "[1]", "PR.map(lambda x: gearsFuture()).run(src)", [], ["Async record did not called continue"]),
    ("Y12", "[5]", "PR.map(lambda x: (gearsFuture(), x)[1]).run(src)", ["5"], []),
    (
        "Y14",
        "[1]",
        "async def f(x): return await GB('KeysReader').map(lambda r: r['key']).sort().run()\nPR.map(f).run(src)",
        ["[['k0', 'k1', 'k2'], []]"],
        [],
    ),
    (
        "Y16",
        "[1]",
        "async def f(x):\n    with atomic():\n        await asyncio.sleep(0.1)\nPR.map(f).run(src)",
        [],
        ["await is not allow inside atomic block"],
    ),
    (
        "Y17",
        "[1]",
        """async def f(x):
    a = GB('ShardsIDReader').run(convertToStr=False)
    b = GB('ShardsIDReader').count().run(convertToStr=False)
    return [await a, await b]
PR.map(f).run(src)""",
        ["[[['1'], []], [[1], []]]"],
        [],
    ),
    (
        "Y18",
        "[1]",
        """async def f(x):
    fut = createFuture()
    setFutureException(fut, 'oops')
    return await fut
PR.map(f).run(src)""",
        [],
        ["oops"],
    ),
    (
        "Y19",
        "[1]",
        """async def f(x):
    try:
        await asyncio.wait_for(asyncio.sleep(1), 0.05)
    except asyncio.TimeoutError:
        return 'timed out'
PR.map(f).run(src)""",
        ["timed out"],
        [],
    ),
    (
        "Y20",
        "[1]",
        """async def w(): return 'waited'
def f(x):
    fut = gearsFuture()
    runCoroutine(w(), f=fut, delay=0.05)
    return fut
PR.map(f).run(src)""",
        ["waited"],
        [],
    ),
]


@pytest.mark.parametrize(("values", "program", "results", "errors"), [row[1:] for row in Y], ids=[row[0] for row in Y])
def test_examples(wire, values, program, results, errors):
    for n in range(3):
        wire.ok("SET", f"k{n}", n)
    assert run(wire, program, values) == (results, errors)
    if "second" in program:
        wait_until(
            lambda: wire.ok("GET", "second") == b"Can not continue with the same future twice",
            "the second call failing",
        )


def test_a_future_can_not_be_continued_before_it_is_returned(wire):
    _, (error,) = run(
        wire, "def f(x):\n    fut = gearsFuture()\n    fut.continueRun(1)\n    return fut\nPR.map(f).run(src)"
    )
    assert "Can not handle future untill it returned from the callback" in error  # Y13


def test_a_run_with_failed_records_is_awaited_like_others(wire):
    (result,), errors = run(  # Y15
        wire,
        "async def f(x): return await GB('ShardsIDReader').map(lambda x: int('no')).run()\nPR.map(f).run(src)",
    )
    results, inner = eval(result)
    assert (results, errors) == ([], [])
    assert len(inner) == 1 and "invalid literal" in inner[0]


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("map(lambda x: gearsFuture(1))", "Future gets no arguments"),
        ("repartition(lambda x: gearsFuture())", "Step does not support async"),
        ("map(lambda x: (gearsFuture(), gearsFuture()))", "Can not create async record twice on the same step"),
        ("map(lambda x: gearsFuture().continueRun())", "Continue function expect an object"),
        ("map(lambda x: gearsFuture().continueFailed(1, 2))", "Continue function expect an object"),
    ],
)
def test_misuse_of_futures(wire, step, text):
    _, (error,) = run(wire, f"PR.{step}.run(src)")
    assert text in error


def test_futures_exist_only_in_steps(wire):
    text = "Future object can only be created inside certain execution steps"
    assert text in wire.error("RG.PYEXECUTE", "gearsFuture()")
    assert run(wire, "async def f(x): return gearsFuture()\nPR.map(f).run(src)") == ([], [text])
    _, (error,) = run(wire, "PR.run(lambda: iter(gearsFuture, None))")
    assert "Can not create gearsFuture outside of step" in error


# Y21
PARKING = """
waiting = []
async def park(args):
    f = createFuture()
    waiting.append(f)
    return await f
def wake(args):
    n = len(waiting)
    while waiting:
        setFutureResults(waiting.pop(), args[1])
    return n
GB('CommandReader').map(park).register(trigger='park', mode=%r)
GB('CommandReader').map(wake).register(trigger='wake', mode='sync', convertToStr=False)
GB('CommandReader').map(lambda x: len(waiting)).register(trigger='parked', mode='sync', convertToStr=False)
"""


def parked(wire):
    return [one for one in wire.ok("RG.DUMPEXECUTIONS") if b"running" in one]


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_clients_are_parked(wire, server, mode):
    register(wire, PARKING % mode)
    clients = [Wire(server.port) for _ in range(12)]
    for client in clients:
        client.send("RG.TRIGGER", "park")
    # An execution runs before its coroutine does.
    wait_until(lambda: trigger(wire, "parked") == [12], "all parking")
    assert len(parked(wire)) == 12
    assert b"rg_nexecutions_pending:12\r\n" in wire.ok("INFO", "rg")
    # More than there are worker threads, and none is held.
    assert run(wire, "PR.run(src)") == (["1"], [])
    assert trigger(wire, "wake", "go") == [12]
    for client in clients:
        assert client.read() == [b"go"]
        client.close()
    assert by_trigger(wire, "park").counters == (12, 12, 0, 0)
    assert b"rg_nexecutions_pending:0\r\n" in wire.ok("INFO", "rg")


def test_a_trigger_picks_by_context(wire):
    register(
        wire,
        """import asyncio
async def slow(args):
    await asyncio.sleep(0.05)
    return 'slow'
def pick(args):
    return slow(args) if isAsyncAllow() else 'fast'
GB('CommandReader').map(pick).register(trigger='pick', mode='sync')
GB('CommandReader').map(slow).register(trigger='slow', mode='sync')
GB('CommandReader').map(lambda x: gearsFuture()).register(trigger='future', mode='sync')
GB('CommandReader').map(slow).register(trigger='local', mode='async_local')
""",
    )
    assert trigger(wire, "pick") == [b"slow"]  # Y22
    assert trigger(wire, "slow") == [b"slow"]
    assert trigger(wire, "future") == Error("Async record did not called continue")
    assert wire.ok("MULTI") == OK
    for name in ("pick", "slow", "future", "local"):
        assert trigger(wire, name) == QUEUED
    pick, slow, future, local = wire.ok("EXEC")
    assert (pick, slow, local) == ([b"fast"], Error(NOT_ALLOWED), Error(NO_BLOCKING))
    assert NOT_ALLOWED in future.text
    assert wire.ok("EVAL", "return redis.call('RG.TRIGGER', 'pick')", 0) == [b"fast"]
    assert NOT_ALLOWED in wire.error("EVAL", "return redis.call('RG.TRIGGER', 'slow')", 0)
    assert by_trigger(wire, "slow").counters == (3, 1, 2, 0)


def test_a_sync_run_gives_the_lock_back(wire, other_wire):
    register(
        wire,
        """import asyncio
async def f(x):
    await asyncio.sleep(0.2)
    return x + '!' + execute('get', 'k')
began = lambda x: execute('incr', 'began')
GB('CommandReader').flatmap(lambda x: x[1:]).foreach(began).map(f).register(trigger='t', mode='sync')
""",
    )
    wire.send("RG.TRIGGER", "t", "a", "b")
    wait_until(lambda: other_wire.ok("GET", "began") is not None, "the first part")
    other_wire.ok("SET", "k", "v")
    assert wire.read() == [b"a!v", b"b!v"]
    assert wire.ok("GET", "began") == b"2"


def test_coroutines_have_their_session_and_may_do_everything(wire):
    program = """
async def f(x):
    await asyncio.sleep(0)
    with atomic():
        execute('set', 'a', 1)
        inside = isInAtomicBlock()
    log('from a coroutine')
    GB('CommandReader').map(lambda x: 'made').register(trigger='made', mode='sync')
    made = execute('RG.TRIGGER', 'made')
    return (str(getGearsSession()), inside, isInAtomicBlock(), isAsyncAllow(), hashtag(), made)
PR.map(f).run(src)
"""
    assert run(wire, program) == (["('PyExecutionSession', True, False, False, '06S', ['made'])"], [])


def test_threads_of_scripts(wire):
    """What they may and may not do, and how they come to a session."""
    program = """
import time
said = []
def attempt(f):
    try:
        said.append(str(f() is not None))
    except Exception as e:
        said.append(str(e))
def body(session, done):
    attempt(lambda: execute('ping'))
    attempt(lambda: GB())
    with GearsSession(session):
        attempt(lambda: GB())
        b.append(None)
        registerGearsThread()
        attempt(lambda: GB('ShardsIDReader').run())
    said.append(str(getGearsSession()))
    attempt(lambda: setGearsSession(1))
    attempt(lambda: setGearsSession())
    attempt(lambda: gearsFuture())
    attempt(lambda: made.run())
    while True:
        try:
            return done.continueRun(said)
        except Exception as e:
            # The thread may be here before its callback has returned.
            assert 'untill it returned' in str(e)
            time.sleep(0.001)
b = []
made = GB('ShardsIDReader')
def f(x):
    fut = gearsFuture()
    Thread(target=body, args=(getGearsSession(), fut)).start()
    return fut
PR.map(f).run(src)
"""
    (result,), errors = run(wire, program)
    assert errors == []
    assert eval(result) == [
        "True",
        "Can not create a gearsCtx on a python created thread",
        "Can only create a gearsCtx on registered gears thread",
        "True",
        "None",
        "Given object is not of type GearsSession",
        "Wrong number of args given to setGearsSession",
        "Future object can only be created inside certain execution steps",
        "Can only run execution on registered gears thread",
    ]


def test_exceptions_of_all_kinds_leave_the_loop_alive(wire):
    for raised, text in [
        ("SystemExit(3)", "3"),
        ("KeyboardInterrupt()", "KeyboardInterrupt"),
        ("asyncio.CancelledError()", "CancelledError"),
        ("KeyError('a')", "'a'"),
    ]:
        assert run(wire, f"async def f(x): raise {raised}\nPR.map(f).run(src)") == ([], [text])
    run(
        wire,
        """async def bad(): raise SystemExit(1)
async def f(x):
    runCoroutine(bad())
    asyncio.get_running_loop().call_soon(sys.exit)
    asyncio.get_running_loop().stop()
PR.map(f).run(src)""",
    )
    assert run(wire, "async def f(x):\n    await asyncio.sleep(0.01)\n    return x\nPR.map(f).run(src)") == (["1"], [])


def test_runs_that_nobody_awaits_leave_nothing(wire):
    program = """
def f(x):
    GB('ShardsIDReader').run()
    return GB('ShardsIDReader').count().run().executionId is not None
PR.map(f).count().run(src)
"""
    assert run(wire, program, "range(50)") == (["50"], [])
    wait_until(lambda: wire.ok("RG.DUMPEXECUTIONS") == [], "the runs being dropped")


def test_rights_go_with_the_coroutine(wire, server):
    wire.ok("ACL", "SETUSER", "coro", "on", ">p", "+rg.pyexecute", "+rg.trigger", "+get", "+multi", "~a*")
    try:
        with Wire(server.port) as user:
            user.ok("AUTH", "coro", "p")
            program = """
async def child(): return execute('get', 'b')
async def f(x):
    got = execute('get', 'a')
    await asyncio.sleep(0.01)
    try:
        return (got, await asyncio.create_task(child()))
    except Exception as e:
        return (got, 'refused' if 'perm' in str(e).lower() or 'access' in str(e).lower() else str(e))
PR.map(f).run(src)
"""
            assert run(user, program) == (["(None, 'refused')"], [])
            # A callback has no other rights than who gave it to the loop.
            program = """
async def f(x):
    said = createFuture()
    def note():
        try:
            said.set_result(execute('get', 'b'))
        except Exception as e:
            said.set_result('refused')
    asyncio.get_running_loop().call_later(0.01, note)
    return await said
PR.map(f).run(src)
"""
            assert run(user, program) == (["refused"], [])
    finally:
        wire.ok("ACL", "DELUSER", "coro")


def test_events_of_keys_go_on_later(wire):
    """In mode sync, where the original ended the process, and in the others."""
    for mode in ("sync", "async_local", "async"):
        register(
            wire,
            f"""import asyncio
async def f(r):
    await asyncio.sleep(0.02)
    execute('rpush', 'seen:{mode}', r['key'])
    return r['key']
GB('KeysReader').map(f).register('k*', mode={mode!r}, eventTypes=['set'])
""",
        )
    for n in range(5):
        wire.ok("SET", f"k{n}", n)
    for mode in ("sync", "async_local", "async"):
        wait_until(lambda mode=mode: wire.ok("LLEN", f"seen:{mode}") == 5, f"all events of mode {mode}")
        assert sorted(wire.ok("LRANGE", f"seen:{mode}", 0, -1)) == [b"k%d" % n for n in range(5)]

    def counted():
        rows = wire.ok("RG.DUMPREGISTRATIONS")
        datas = [row[row.index(b"RegistrationData") + 1] for row in rows]
        return [tuple(data[data.index(name) + 1] for name in (b"numTriggered", b"numSuccess")) for data in datas]

    wait_until(lambda: counted() == [(5, 5)] * 3, "the counters")


# --- ends -----------------------------------------------------------------------------------------------------------

ENDLESS = """import asyncio
async def f(x):
    execute('incr', 'begun')
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        execute('incr', 'cancelled')
        raise
GB('CommandReader').flatmap(lambda x: ['a', 'b']).map(f).register(trigger='t', mode=%r)
"""


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_an_abort_cancels_what_waits(wire, other_wire, mode):
    register(wire, ENDLESS % mode)
    other_wire.send("RG.TRIGGER", "t")
    wait_until(lambda: wire.ok("GET", "begun") == b"2", "both coroutines waiting")
    ((_, execution, *_),) = parked(wire)
    assert wire.ok("RG.ABORTEXECUTION", execution) == OK
    assert other_wire.read() == Error("ERR the execution was aborted")
    wait_until(lambda: wire.ok("GET", "cancelled") == b"2", "both coroutines being cancelled")
    assert by_trigger(wire, "t").counters == (1, 0, 0, 1)


def test_unregistering_while_records_wait(wire, other_wire):
    register(wire, PARKING % "async_local")
    other_wire.send("RG.TRIGGER", "park")
    wait_until(lambda: trigger(wire, "parked") == [1], "it waiting")
    wire.ok("RG.UNREGISTER", by_trigger(wire, "park").id)
    assert trigger(wire, "wake", "still there") == [1]
    assert other_wire.read() == [b"still there"]
    assert len(dump(wire)) == 2


def test_a_client_that_leaves_while_it_waits(wire, server):
    register(wire, PARKING % "sync")
    with Wire(server.port) as client:
        client.send("RG.TRIGGER", "park")
        wait_until(lambda: trigger(wire, "parked") == [1], "it waiting")
    assert trigger(wire, "wake", "nobody") == [1]
    wait_until(lambda: by_trigger(wire, "park").counters == (1, 1, 0, 0), "the end")
    leave_nothing([server])


def test_who_blocks_the_loop_is_named_and_stopped(wire, other_wire, server):
    before = len(server.log())
    register(
        wire,
        "async def f(x):\n    while True: pass\nGB('CommandReader').map(f).register(trigger='t', mode='async_local')",
        "ID",
        "the-blocker",
    )

    def says(part):
        return any(part in line and "the-blocker" in line for line in server.log()[before:].splitlines())

    other_wire.send("RG.TRIGGER", "t")
    wait_until(lambda: says("has kept the event loop busy"), "the warning")
    # The server answers meanwhile.
    assert wire.ok("PING") == Simple("PONG")
    ((_, execution, *_),) = parked(wire)
    wire.ok("RG.ABORTEXECUTION", execution)
    assert other_wire.read() == Error("ERR the execution was aborted")
    wait_until(lambda: says("has let the event loop go"), "the end of it")
    assert run(wire, "async def f(x):\n    await asyncio.sleep(0.01)\n    return x\nPR.map(f).run(src)") == (["1"], [])


def test_a_callback_that_blocks_the_loop_is_named(wire, server):
    before = len(server.log())
    program = """async def f(x):
    asyncio.get_running_loop().call_soon(lambda: time.sleep(1.5))
    await asyncio.sleep(0.01)
PR.map(f).run(src)"""
    wire.ok("RG.PYEXECUTE", HEAD.replace("VALUES", "[1]") + program, "ID", "naps")
    wait_until(lambda: "coroutine of session naps has let the event loop go" in server.log()[before:], "the lines")


def test_a_thousand_records_wait_at_most(wire):
    program = """
now = most = 0
async def f(x):
    global now, most
    now += 1
    most = max(most, now)
    await asyncio.sleep(0.05)
    now -= 1
    return x
PR.map(f).accumulate(lambda a, x: (a or []) + [x]).map(lambda l: (l == list(range(3000)), most)).run(src)
"""
    (result,), errors = run(wire, program, "range(3000)")
    in_order, most = eval(result)
    assert (errors, in_order) == ([], True)
    assert 100 < most <= 1000


def test_many_clients_at_once(wire, server):
    """Order within a run, and no answer for somebody else."""
    register(
        wire,
        """import asyncio, random
async def f(x):
    await asyncio.sleep(random.random() / 100)
    return x
GB('CommandReader').flatmap(lambda x: x[1:]).map(f).map(f).register(trigger='s', mode='sync')
GB('CommandReader').flatmap(lambda x: x[1:]).map(f).register(trigger='l', mode='async_local')
""",
    )
    wrong = []

    def client(number):
        with Wire(server.port) as mine:
            for turn in range(15):
                args = [b"%d:%d:%d" % (number, turn, n) for n in range(10)]
                if trigger(mine, "s" if (number + turn) % 2 else "l", *args) != args:
                    wrong.append((number, turn))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(120 - (time.monotonic() - start), 0.1))
    assert wrong == [] and not any(thread.is_alive() for thread in threads)
    assert sum(by_trigger(wire, name).counters[1] for name in "sl") == 150
