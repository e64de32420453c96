"""Fixtures of the tests of batch runs."""

import pytest
from wire import Wire


@pytest.fixture
def exact(server):
    """A connection to the single server that tells simple strings, bulk strings and errors apart."""
    with Wire(server.port) as connection:
        yield connection


@pytest.fixture
def exact_shard(cluster):
    """The same to the first shard of the cluster."""
    with Wire(cluster.servers[0].port) as connection:
        yield connection
