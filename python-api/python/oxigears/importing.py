"""Finders for the modules that the server carries in itself."""

import sys
from importlib.machinery import ModuleSpec


class EmbeddedFinder:
    """Finds and loads modules whose sources are given as {name: (is a package, text)}."""

    def __init__(self, sources):
        self._sources = sources

    def find_spec(self, name, path=None, target=None):
        source = self._sources.get(name)
        if source is None:
            return None
        spec = ModuleSpec(name, self, origin=self._file(name), is_package=source[0])
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__
        # Angle brackets keep `linecache` from looking for a file.
        code = compile(self._sources[name][1], self._file(name), "exec", dont_inherit=True)
        exec(code, module.__dict__)

    def _file(self, name):
        package = self._sources[name][0]
        return "<%s%s.py>" % (name.replace(".", "/"), "/__init__" if package else "")


def install(own, fallback):
    """`own` modules win over installed ones, `fallback` modules do not."""
    sys.meta_path.insert(0, EmbeddedFinder(own))
    sys.meta_path.append(EmbeddedFinder(fallback))
