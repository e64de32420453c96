"""Parts of operations that run as Python functions, so that their failures have a traceback."""


def sort_records(records, ascending):
    """Sorts the list in place."""
    records.sort(reverse=not ascending)


def reraise(exception):
    """Gives an exception that came from native code a traceback."""
    raise exception


def do_nothing():
    """Runs bytecode, which lets a pending forced stop out."""
