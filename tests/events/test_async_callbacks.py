"""What asyncio calls for coroutines: callbacks of every kind, and tasks, have their session and their rights."""

import pytest
from registrations import by_trigger
from replies import pair, wait_until
from wire import Wire

pytestmark = pytest.mark.matrix

# --- runs that nobody but a callback waits for --------------------------------------------------------------------

CALLED = "lambda over: execute('rpush', 'called', str(over.result()))"
WHO_ASKS = {
    "step": f"def f(x):\n    GB('ShardsIDReader').count().run().add_done_callback({CALLED})",
    "coroutine": f"async def f(x):\n    GB('ShardsIDReader').count().run().add_done_callback({CALLED})",
    "two": f"""def f(x):
    made = GB('ShardsIDReader').count().run()
    made.add_done_callback(lambda over: execute('rpush', 'called', 'first'))
    made.add_done_callback({CALLED})""",
    "callback": f"""def again(over):
    execute('rpush', 'called', 'first')
    GB('ShardsIDReader').count().run().add_done_callback({CALLED})
async def f(x):
    GB('ShardsIDReader').count().run().add_done_callback(again)""",
}
# A step has no task to inherit from.
WHO_ASKS["callback of a step"] = WHO_ASKS["callback"].replace("async def f", "def f")


@pytest.mark.parametrize("who", WHO_ASKS)
def test_a_done_callback_of_a_run_is_called_though_nobody_keeps_it(wire, who):
    assert pair(wire.ok("RG.PYEXECUTE", f"{WHO_ASKS[who]}\nGB('ShardsIDReader').map(f).run()"))[1] == []
    wanted = [b"first"] * ("'first'" in WHO_ASKS[who]) + [b"[['1'], []]"]
    wait_until(lambda: wire.ok("LRANGE", "called", 0, -1) == wanted, "the callback")


CONTINUES = """
def f(x):
    later = gearsFuture()
    GB('ShardsIDReader').count().run().add_done_callback(lambda over: later.continueRun(over.result()))
    return later
GB('ShardsIDReader').map(f).run()
"""


def test_a_done_callback_of_a_run_continues_a_step(wire):
    for _ in range(10):
        assert pair(wire.ok("RG.PYEXECUTE", CONTINUES)) == ([b"[['1'], []]"], [])


def test_a_done_callback_of_runs_over_a_cluster(cluster, wires):
    assert pair(wires[1].ok("RG.PYEXECUTE", CONTINUES)) == ([b"[['3'], []]"] * 3, [])


# --- session and rights -------------------------------------------------------------------------------------------

# What each of these begins calls `look`.
HEAD = """
import asyncio, socket
loop = asyncio.get_event_loop
looked = None

def look(*_):
    # A descriptor is told of until it is removed: nothing is registered when the test is over.
    if looked.done():
        return
    found = []
    for key in 'own', 'secret':
        try:
            found.append(execute('get', key))
        except Exception as error:
            found.append('refused' if 'access' in str(error) or 'NOPERM' in str(error) else str(error))
    try:
        GB('CommandReader').register(trigger='made', mode='sync')
    except Exception as error:
        found.append(str(error))
    looked.set_result(found)

async def look_later(*_):
    await asyncio.sleep(0)
    look()

class Callable:
    def __call__(self, *_):
        look()

class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, then):
        self.then = then
    def datagram_received(self, data, address):
        self.then()

class Stream(asyncio.Protocol):
    def __init__(self, moment, then):
        setattr(self, moment, then)

async def datagram(then):
    transport, _ = await loop().create_datagram_endpoint(lambda: Datagrams(then), ('127.0.0.1', 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b'x', transport.get_extra_info('sockname'))
    await looked
    transport.close()

async def connected(moment, then):
    mine, other = socket.socketpair()
    transport, _ = await loop().create_connection(lambda: Stream(moment, then), sock=mine)
    other.send(b'x')
    other.close()
    await looked
    transport.close()

async def accepted(then):
    server = await loop().create_server(lambda: Stream('data_received', then), '127.0.0.1', 0)
    with socket.create_connection(server.sockets[0].getsockname()) as other:
        other.send(b'x')
        await looked
    server.close()

async def descriptor(add, remove, then):
    mine, other = socket.socketpair()
    other.send(b'x')
    add(mine, then)
    await looked
    remove(mine)
    mine.close()
    other.close()

def task(maker=lambda coroutine: loop().create_task(coroutine)):
    return lambda *_: maker(look_later())

def done_future(callback):
    future = loop().create_future()
    future.add_done_callback(callback)
    future.set_result(None)

async def f(x):
    global looked
    looked = loop().create_future()
    one = BEGIN
    if asyncio.iscoroutine(one):
        await one
    return await looked

GB('ShardsIDReader').map(f).flatmap(lambda x: x).run()
"""
BUILTIN = "exec, 'look()', globals()"
DIRECT = "task(lambda coroutine: asyncio.Task(coroutine, loop=loop()))"
WAYS = {
    "datagram_received": "datagram(look)",
    "data_received": "connected('data_received', look)",
    "eof_received": "connected('eof_received', look)",
    "accepted": "accepted(look)",
    "add_reader": "descriptor(loop().add_reader, loop().remove_reader, look)",
    "add_writer": "descriptor(loop().add_writer, loop().remove_writer, look)",
    "add_reader-callable": "descriptor(loop().add_reader, loop().remove_reader, Callable())",
    "call_soon-callable": "loop().call_soon(Callable())",
    "call_later-callable": "loop().call_later(0.01, Callable())",
    "call_at-callable": "loop().call_at(0, Callable())",
    "call_soon_threadsafe-callable": "loop().call_soon_threadsafe(Callable())",
    "call_soon-builtin": f"loop().call_soon({BUILTIN})",
    "call_later-builtin": f"loop().call_later(0.01, {BUILTIN})",
    "call_soon_threadsafe-builtin": f"loop().call_soon_threadsafe({BUILTIN})",
    "done-callable": "done_future(Callable())",
    "done-callable-task": "asyncio.create_task(asyncio.sleep(0)).add_done_callback(Callable())",
    "task-direct": f"{DIRECT}()",
    "task-of-datagram": "datagram(task())",
    "task-of-reader": "descriptor(loop().add_reader, loop().remove_reader, task())",
    "task-of-callable": "loop().call_soon(type('', (), {'__call__': lambda self: task()()})())",
    "task-of-builtin": "loop().call_soon(exec, 'task()()', globals())",
    "task-direct-of-datagram": f"datagram({DIRECT})",
    "task-direct-of-task": f"task(lambda c: (c.close(), loop().call_soon({DIRECT})))()",
}


@pytest.fixture
def limited(wire, server):
    """A user that may read one key."""
    wire.ok("ACL", "SETUSER", "limited", "on", ">p", "+@all", "%R~own")
    wire.ok("MSET", "own", "mine", "secret", "hidden")
    with Wire(server.port) as user:
        user.ok("AUTH", "limited", "p")
        yield user
    wire.ok("ACL", "DELUSER", "limited")


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_coroutine_asks_for_has_its_session_and_rights(wire, limited, way):
    program = HEAD.replace("BEGIN", WAYS[way])
    assert pair(limited.ok("RG.PYEXECUTE", program, "ID", "mine")) == ([b"mine", b"refused"], [])
    assert by_trigger(wire, "made").pd["sessionName"] == "mine"


def test_what_nobody_limits_stays_so(wire):
    wire.ok("MSET", "own", "mine", "secret", "seen")
    for way in "datagram_received", "add_reader", "call_soon-callable", "call_soon-builtin", "task-direct":
        program = HEAD.replace("BEGIN", WAYS[way]).replace("'made'", f"'made-{way}'")
        assert pair(wire.ok("RG.PYEXECUTE", program)) == ([b"mine", b"seen"], []), way
