"""Python functions inside Redis shards: the script environment of OxiGears.

Inside the server every script sees these names as globals; importing them from here as well lets editors and type
checkers know them::

    from oxigears import GearsBuilder, execute
"""

import sys

__version__ = "0.1.0"

# Made by the server; elsewhere the package only serves editors.
if "_oxigears" in sys.modules:
    from oxigears.environment import *  # noqa: F403
