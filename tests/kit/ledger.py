"""Writes down what clients asked of the registry and what they were told, and compares it with what is there."""

import threading

from registrations import dump, simple_trigger, trigger, wait_equal
from repeating import Repeating
from replies import wait_until
from wire import Error, Simple, Wire

DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"
# Longer than any change may take; the client then has no reply, which counts as a failure of its own.
REPLY_S = 30.0
# What the module says when it does not know, and what the server itself tells waiting clients when roles change.
UNSURE = ("TIMEOUT", "UNBLOCKED", "CLUSTERDOWN")
# Errors that promise that nothing was changed.
SURE = ("NOQUORUM", "READONLY", "LOADING", "MASTERDOWN", "ERR ", "Session ", "execution is not registered")


def fate(reply):
    """What a reply to a change says about it."""
    if reply == Simple("OK"):
        return DONE
    texts = [reply.text] if isinstance(reply, Error) else [one.text for one in reply]
    if any(text.startswith(UNSURE) for text in texts):
        return UNKNOWN
    # A Python error is a list of traceback lines: the script itself was refused.
    assert all(text.startswith(SURE) or text.startswith("[") for text in texts), f"an unclear answer: {texts}"
    return REFUSED


def ask(server, *command):
    """(fate, reply) of a change; a lost connection means that nobody knows."""
    try:
        with Wire(server.port) as wire:
            reply = wire.call(*command, timeout=REPLY_S)
    except (ConnectionError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise AssertionError(f"{command[0]} got no answer of {server} within {REPLY_S:g} s") from error
        return UNKNOWN, error
    return fate(reply), reply


class Ledger:
    """The names of triggers by what their clients were told. Each name is its session's as well."""

    def __init__(self):
        self.lock = threading.Lock()
        self.made, self.refused, self.unknown, self.removed = set(), set(), set(), set()
        # Asked to be removed, with an unknown outcome.
        self.perhaps_removed = set()

    def add(self, server, name):
        """One registration; gives its fate."""
        found, reply = ask(server, "RG.PYEXECUTE", simple_trigger(name, name), "ID", name)
        assert "already" not in str(reply), f"{name} was there before it was asked for: {reply}"
        with self.lock:
            {DONE: self.made, REFUSED: self.refused, UNKNOWN: self.unknown}[found].add(name)
        return found

    def settle(self, server, name):
        """Repeats a registration of unknown outcome, which must be safe; True once it is known to be there."""
        found, reply = ask(server, "RG.PYEXECUTE", simple_trigger(name, name), "ID", name)
        there = found == DONE or f"Session {name} already exists" in str(reply)
        if there:
            with self.lock:
                self.unknown.discard(name)
                self.made.add(name)
        return there

    def remove(self, server, name):
        """Unregisters what is known to be there; gives the fate."""
        try:
            with Wire(server.port) as wire:
                (registration,) = [one.id for one in dump(wire).values() if one.trigger == name.encode()]
        except (OSError, ValueError, AssertionError):
            # The node is down, loads, or does not hold it yet.
            return REFUSED
        found, reply = ask(server, "RG.UNREGISTER", registration)
        assert "not registered" not in str(reply), f"{name} was gone before it was removed: {reply}"
        if found != REFUSED:
            with self.lock:
                self.made.discard(name)
                {DONE: self.removed, UNKNOWN: self.perhaps_removed}[found].add(name)
        return found

    def check(self, servers, sample=30):
        """Every node holds the same: all that was acknowledged, nothing that was refused or removed."""
        found = {row[3].decode() for row in wait_equal(servers)[0]}
        assert self.made <= found, f"acknowledged and lost: {sorted(self.made - found)}"
        assert not self.refused & found, f"refused, and there: {sorted(self.refused & found)}"
        assert not self.removed & found, f"resurrected: {sorted(self.removed & found)}"
        known = self.made | self.unknown | self.perhaps_removed
        assert found <= known, f"nobody asked for {sorted(found - known)}"
        names = sorted(found)[:: max(1, len(found) // sample)]
        for server in servers:
            if server.is_master():
                with Wire(server.port) as wire:
                    for name in names:
                        assert trigger(wire, name) == [name.encode()]
        return found


class Writer(Repeating):
    """Registers and unregisters without pause, asking one node after the other, until it is left."""

    def __init__(self, ledger, servers, name):
        super().__init__()
        self.ledger, self.servers, self.name = ledger, list(servers), name
        self.done = 0

    def step(self, _):
        self.count += 1
        server = self.servers[self.count % len(self.servers)]
        if not server.alive() or server.paused():
            # As a client does that cannot connect; the pause only keeps it from spinning.
            self._end.wait(0.01)
            return
        name = f"{self.name}-{self.count}"
        found = self.ledger.add(server, name)
        if found == DONE:
            self.done += 1
            if self.count % 3 == 0:
                self.ledger.remove(server, name)
        elif found == UNKNOWN and self.count % 2 == 0:
            self.ledger.settle(self.servers[(self.count + 1) % len(self.servers)], name)

    def wait_done(self, more, timeout=60.0):
        """Returns after so many more acknowledged registrations."""
        before = self.done
        wait_until(lambda: self.broken or self.done >= before + more, "acknowledged registrations", timeout)
        assert self.broken is None, self.broken
