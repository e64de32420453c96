"""What tests of dumps, the AOF and replicas share."""

import contextlib
import os
import signal
import time
from pathlib import Path

from registrations import dump, state, trigger
from replies import wait_until
from wire import Error, Wire

COMMAND = b"RG.INNERREGISTRY"
# Bounds that only guard against hanging.
SAVE_S = 60.0


def info(server, section):
    with server.client() as client:
        return client.info(section)


def works(server, names):
    """Whether each trigger of these names answers with its name."""
    with Wire(server.port) as wire:
        return all(trigger(wire, name) == [name.encode()] for name in names)


def expect(server, wanted, names):
    """Returns when the server holds what `state` gave before, and nothing else, and its triggers work."""
    found = wait_until(
        lambda: (lambda now: now if now == wanted else None)(state(server)), f"{server} holding {wanted}"
    )
    assert sorted(row[3].decode() for row in found[0]) == sorted(names)
    wait_until(lambda: works(server, names), f"the triggers of {server}")


def expect_names(server, names):
    """Returns when the server holds triggers of exactly these names, and they work."""

    def held():
        with Wire(server.port) as wire:
            return sorted(one.trigger.decode() for one in dump(wire).values()) == sorted(names)

    wait_until(held, f"{server} holding {sorted(names)}")
    wait_until(lambda: works(server, names), f"the triggers of {server}")


def children(server):
    tasks = Path(f"/proc/{server.pid}/task")
    found = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def kill_children(server):
    """Ends the processes that save or rewrite for the server."""
    pids = wait_until(lambda: children(server), f"a child of {server}")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(pids) & set(children(server)), f"the children of {server} ending")


def idle(server):
    found = info(server, "persistence")
    busy = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
    return not any(found[name] for name in busy)


def wait_idle(server):
    """Returns when nothing is saved or rewritten."""
    wait_until(lambda: idle(server), f"{server} having saved", SAVE_S)


def rewrite(server):
    """One AOF rewrite from its beginning to its end."""
    wait_idle(server)
    before = info(server, "stats").get("aof_rewrites", 0), time.monotonic()
    server.command("BGREWRITEAOF")
    wait_until(lambda: idle(server), f"{server} rewriting its AOF", SAVE_S)
    assert info(server, "persistence")["aof_last_bgrewrite_status"] == "ok", before


def aof(server):
    """Name -> bytes of the files of the AOF."""
    files = (Path(server.dir) / "appendonlydir").glob("appendonly.aof.*")
    return {path.name: path.read_bytes() for path in sorted(files) if not path.name.endswith("manifest")}


def logged(server, word):
    """How often the internal command with this word is in the AOF."""
    head = COMMAND.lower() + b"\r\n$%d\r\n%s\r\n" % (len(word), word.encode())
    return sum(data.lower().count(head.lower()) for data in aof(server).values())


def received(server):
    """How many internal commands the server was sent."""
    return info(server, "commandstats").get("cmdstat_rg.innerregistry", {}).get("calls", 0)


def follow(replica, master):
    """Makes a server the replica of another one; returns when it has its data."""
    replica.command("REPLICAOF", "127.0.0.1", master.port)
    wait_following(replica, master)


def wait_following(replica, master):
    """Returns when the replica has received everything that its master has sent."""

    def caught_up():
        mine = info(replica, "replication")
        return (
            mine.get("master_link_status") == "up"
            and mine["slave_repl_offset"] >= info(master, "replication")["master_repl_offset"]
        )

    wait_until(caught_up, f"{replica} following {master}", SAVE_S)


def follow_busy(replica, master):
    """The same for a master that never stops writing: returns when the link is up."""
    replica.command("REPLICAOF", "127.0.0.1", master.port)

    def is_up():
        return info(replica, "replication").get("master_link_status") == "up"

    wait_until(is_up, f"{replica} following {master}", SAVE_S)


def is_readonly(reply):
    return isinstance(reply, Error) and reply.text.startswith("READONLY ")
