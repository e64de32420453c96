"""Who has the server lock comes first at the interpreter: others that want the lock do not keep it from that thread."""

import time

import pytest
from registrations import register
from replies import wait_until

pytestmark = pytest.mark.matrix

USERS = 6
# They want the lock again and again, until the key `enough` is there.
LOOPS = f"""
import threading
def loop(name):
    while not execute('exists', 'enough'):
        with atomic():
            execute('incr', name)
for number in range({USERS}):
    threading.Thread(target=loop, args=('user%d' % number,)).start()
"""
# In a transaction no client can be parked: the server itself waits for the interpreter.
TRIGGER = "GB('CommandReader').map(lambda x: execute('incr', 'seen')).register(trigger='t', mode='sync')\n"
TRANSACTIONS = 500
# They take about a second. When the loops handed the interpreter to each other it was a tenth of one for each.
WAIT_S = 20.0


def test_transactions_do_not_wait_for_those_who_wait_for_them(wire):
    def counts():
        return [int(wire.ok("GET", f"user{number}") or 0) for number in range(USERS)]

    register(wire, LOOPS + TRIGGER)
    wait_until(lambda: all(counts()), "all loops")
    try:
        deadline = time.monotonic() + WAIT_S
        for number in range(TRANSACTIONS):
            for command in (["MULTI"], ["RG.TRIGGER", "t"], ["EXEC"]):
                wire.send(*command)
            replies = [wire.read(deadline - time.monotonic()) for _ in range(3)]
            assert replies[-1] == [[b"%d" % (number + 1)]]
        before = counts()
        wait_until(lambda: all(map(int.__gt__, counts(), before)), "the loops going on")
    finally:
        wire.ok("SET", "enough", "1")
