"""Thin wrappers over the standard profiler."""

import cProfile
import io
import pstats


def profilerCreate():
    """A profiler that is switched off."""
    return cProfile.Profile()


def profileStart(profiler):
    """Switches it on."""
    profiler.enable()


def profileStop(profiler):
    """Switches it off."""
    profiler.disable()


def profileGetInfo(profiler, order="cumulative"):
    """What it saw, as text: statistics, callers, callees."""
    with io.StringIO() as text:
        statistics = pstats.Stats(profiler, stream=text).sort_stats(order)
        statistics.print_stats()
        statistics.print_callers()
        statistics.print_callees()
        return text.getvalue()
