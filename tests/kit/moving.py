"""Slots on the move, step by step."""

import localcluster


class Move:
    """A slot that is on the move; whatever happens it is back at its owner in the end."""

    def __init__(self, cluster, source, target, tag):
        self.cluster, self.source, self.target = cluster, source, target
        self.slot = localcluster.key_slot(tag.encode())
        self.moving = self.gone = True

    def __enter__(self):
        self.target.command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.source.node_id)
        self.source.command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.target.node_id)
        return self

    def key(self, key):
        self.source.command("MIGRATE", localcluster.HOST, self.target.port, key, 0, 60000)

    def finish(self):
        while keys := self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, 1):
            self.key(keys[0])
        for server in (self.target, self.source):
            server.command("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.node_id)
        self.moving = False

    def cancel(self):
        for server in (self.target, self.source):
            server.command("CLUSTER", "SETSLOT", self.slot, "STABLE")
        self.moving = self.gone = False

    def __exit__(self, *_):
        if self.moving:
            self.finish()
        if self.gone:
            self.cluster.move_slots([self.slot], self.target, self.source)
        self.cluster.wait_cluster_ok()
