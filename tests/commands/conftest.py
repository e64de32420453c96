"""Fixtures of the tests of commands: connections that show replies as they are, and servers of a test's own."""

import localcluster
import pytest
from cleaning import leave_nothing
from wire import Wire


@pytest.fixture
def wire(server):
    """A connection to the single server."""
    leave_nothing([server])
    with Wire(server.port) as connection:
        yield connection
    leave_nothing([server])


@pytest.fixture
def other_wire(server, wire):
    """A second connection to the same server."""
    with Wire(server.port) as connection:
        yield connection


@pytest.fixture
def wires(cluster):
    """A connection to each master of the cluster, in the order of `cluster.masters()`."""
    masters = cluster.masters()
    leave_nothing(masters)
    connections = [Wire(master.port) for master in masters]
    yield connections
    for connection in connections:
        connection.close()
    leave_nothing(masters)


@pytest.fixture
def fresh():
    """Starts servers of the test's own: fresh(*module_args, server_args=()) gives a server."""
    started = []

    def start(*module_args, server_args=()):
        server = localcluster.start_server(
            module=localcluster.DEFAULT_MODULE, module_args=module_args, server_args=server_args
        )
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def fresh_wire(fresh):
    """fresh_wire(*module_args) gives a connection to a server that nobody else uses."""
    connections = []

    def connect(*module_args, **options):
        connections.append(Wire(fresh(*module_args, **options).port))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()
