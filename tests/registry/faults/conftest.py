"""Fixtures of the tests of the registry under faults: clusters that may be broken and are mended afterwards."""

import pytest
from breaking import HEAL_S, no_crash, running_cluster
from registrations import clear, wait_group

# As in tests/faults: when the server finds its cluster down, it answers all waiting clients with CLUSTERDOWN, and
# nobody would see what OxiGears has to say.
NODE_TIMEOUT = ("--cluster-node-timeout", "120000")


def mend(cluster):
    """Brings back what was killed or stopped, and removes all registrations."""
    for server in cluster.servers:
        if server.paused():
            server.resume()
        if not server.alive():
            server.start()
    cluster.wait_cluster_ok(HEAL_S)
    wait_group(cluster.servers, HEAL_S)
    clear(cluster.servers)
    no_crash(cluster.servers)


def lend(cluster):
    """The cluster to one test; a cluster that cannot be mended is replaced, and the test has failed."""
    mend(cluster)
    yield cluster
    try:
        mend(cluster)
    except BaseException:
        cluster.stop()
        cluster.start()
        cluster.wait_mesh()
        raise


@pytest.fixture(scope="session")
def breakable_three():
    with running_cluster(masters=3, server_args=NODE_TIMEOUT) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def breakable_six():
    with running_cluster(masters=3, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def trio(breakable_three):
    """Three masters."""
    yield from lend(breakable_three)


@pytest.fixture
def six(breakable_six):
    """Three masters with a replica each."""
    yield from lend(breakable_six)
