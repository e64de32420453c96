"""Executions that run again and again while a test changes the cluster under them."""

import threading

from breaking import HEAL_S, outcome, wait_works
from replies import wait_until
from wire import HANG_GUARD_S, Wire

KEYS = 3000
FULL = [b"%d" % KEYS]
# Each counts every key once, in another way: by reading, by a shuffle of everything, by groups.
SCRIPTS = [
    "GB('KeysOnlyReader').count().run('k*')",
    "GB().count().run('k*')",
    "GB().repartition(lambda r: r['key']).count().run('k*')",
    "GB().countby(lambda r: r['value']).accumulate(lambda a, r: (a or 0) + r['value'])"
    ".collect().accumulate(lambda a, x: (a or 0) + x).run('k*')",
]


def fill(cluster):
    with cluster.cluster_client(socket_timeout=HANG_GUARD_S) as client:
        for i in range(KEYS):
            client.set(f"k{i}", f"v{i % 10}")


class Loop:
    """Runs executions from a given server until it is left, and keeps every outcome that is neither full nor error."""

    def __init__(self, server):
        self.server = server
        self.wrong, self.complete, self.failed = [], 0, 0
        self.broken = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(HANG_GUARD_S)
        assert not self._thread.is_alive(), "an execution hangs"

    def _run(self):
        try:
            while not self._end.is_set():
                self._run_connected()
        except Exception as error:
            self.broken = error

    def _run_connected(self):
        with Wire(self.server.port) as wire:
            while not self._end.is_set():
                for script in SCRIPTS:
                    try:
                        self._note(script, outcome(wire.call("RG.PYEXECUTE", script)))
                    except ConnectionError:
                        # A master that becomes a replica hangs up on clients that wait.
                        if not self.server.alive():
                            raise
                        self.failed += 1
                        return

    def _note(self, script, found):
        results, errors = found
        if errors:
            self.failed += 1
        elif results == FULL:
            self.complete += 1
        else:
            self.wrong.append((script, results))

    def wait_complete(self, more):
        """Returns after so many more complete executions."""
        before = self.complete
        wait_until(lambda: self.broken or self.complete >= before + more, "complete executions", HEAL_S)
        self.check()

    def check(self):
        assert self.broken is None, self.broken
        assert self.wrong == [], f"a part was shown as the whole: {self.wrong[:3]}"


def expect_complete(servers, shards):
    """Every script, from every server, without any help."""
    wait_works(servers, shards)

    def all_right(wire):
        for script in SCRIPTS:
            results, errors = outcome(wire.call("RG.PYEXECUTE", script))
            assert errors or results == FULL, f"a part was shown as the whole: {results} of {script}"
            if errors:
                return False
        return True

    for server in servers:
        with Wire(server.port) as wire:
            wait_until(lambda wire=wire: all_right(wire), f"complete counts from {server}", HEAL_S)
