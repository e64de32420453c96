"""Short name of `redisgears`."""

from redisgears import *  # noqa: F403
