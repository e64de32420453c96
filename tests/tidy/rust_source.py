"""Rust source with its comments and literals blanked out, so that a rule about code does not trip over prose."""

import re

# In the order in which they must be tried at a position: raw strings before strings, characters before lifetimes.
TOKEN = re.compile(
    r"""
    (?P<line_comment>//[^\n]*)
  | (?P<block_comment>/\*)
  | (?P<raw_string>\b(?:b|c)?r(?P<hashes>\#*)".*?"(?P=hashes))
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<char>'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.))')
    """,
    re.VERBOSE | re.DOTALL,
)


def _block_comment_end(text: str, start: int) -> int:
    """Block comments nest in Rust."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", text[start:]):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return start + mark.end()
    return len(text)


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def code_only(text: str) -> str:
    """The same text, line for line, with spaces in the place of comments, strings and characters."""
    out, position = [], 0
    while match := TOKEN.search(text, position):
        end = _block_comment_end(text, match.start()) if match["block_comment"] else match.end()
        out += [text[position : match.start()], _blank(text[match.start() : end])]
        position = end
    return "".join(out) + text[position:]


TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))?\s+)?mod\s+(\w+)\s*([;{])")


def test_module_files(code: str) -> set[str]:
    """Names of the modules that this code has in files of their own for tests only."""
    return {match[1] for match in TEST_MODULE.finditer(code) if match[2] == ";"}


def without_tests(code: str) -> str:
    """The result of `code_only`, with inline test modules blanked out as well."""
    position = 0
    while match := TEST_MODULE.search(code, position):
        end, depth = match.end(), int(match[2] == "{")
        while depth and end < len(code):
            depth += {"{": 1, "}": -1}.get(code[end], 0)
            end += 1
        code = code[: match.start()] + _blank(code[match.start() : end]) + code[end:]
        position = end
    return code
