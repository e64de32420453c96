"""Aligned text tables."""


def table(head, rows, left=(0,)):
    """Columns as wide as their widest cell, those named in `left` set left and the others right."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]

    def line(cells):
        padded = (f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(map(str, cells)))
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])
