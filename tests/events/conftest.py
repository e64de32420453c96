"""Fixtures of the tests of everything that fires: servers that hold no registration before and after each test."""

import localcluster
import pytest
from breaking import no_crash
from cleaning import leave_nothing
from registrations import clear, wait_group
from wire import Wire


def tidy(servers):
    clear(servers)
    leave_nothing(servers)


@pytest.fixture
def wire(server):
    """A connection to the single server."""
    tidy([server])
    with Wire(server.port) as connection:
        yield connection
    tidy([server])


@pytest.fixture
def other_wire(server, wire):
    """A second connection to the same server."""
    with Wire(server.port) as connection:
        yield connection


@pytest.fixture
def wires(cluster):
    """A connection to each shard, in the order of `cluster.servers`."""
    wait_group(cluster.servers)
    tidy(cluster.servers)
    connections = [Wire(server.port) for server in cluster.servers]
    yield connections
    for connection in connections:
        connection.close()
    tidy(cluster.servers)


@pytest.fixture(scope="session")
def replicated():
    """Three masters with a replica each. Tests must leave the roles as they were."""
    with localcluster.LocalCluster(masters=3, replicas=1) as cluster:
        cluster.wait_mesh()
        wait_group(cluster.servers)
        yield cluster
        no_crash(cluster.servers)


@pytest.fixture
def six(replicated):
    """The cluster of six nodes, without registrations."""
    clear(replicated.servers)
    yield replicated
    clear(replicated.servers)


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
    no_crash(started)
