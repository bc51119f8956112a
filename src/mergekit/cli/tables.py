"""Tables and labelled paragraphs of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 80


def paragraph(label: str, text: str, indent: int = 14) -> Iterator[str]:
    """Lines of text behind a label, which stands on a line of its own if it is too long.

    Example:
        >>> list(paragraph("layers", "24 of one kind", indent=8))
        ['layers  24 of one kind']
    """
    if len(label) >= indent:
        yield label
        label = ""
    margin = " " * indent
    yield from textwrap.wrap(text, WIDTH, initial_indent=label.ljust(indent), subsequent_indent=margin)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, last: bool = False) -> Iterator[str]:
    r"""Lines of a table; where it is wider than 80 columns, the columns on the right go to a second one below.

    Parameters:
        head: names of the columns.
        rows: cells.
        left: columns that begin at the left and are repeated; the others are numbers.
        last: whether the last column is text of any length, and all columns stay in one table.

    Example:
        >>> print("\n".join(table(["layer", "q"], [["0", "0.01"], ["1", "0.123"]])))
        layer      q
        0       0.01
        1      0.123
    """
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    every = [list(range(len(head)))]
    for number, columns in enumerate(every if last else _fitting(widths, left)):
        if number:
            yield ""
        for row in cells:
            texts = [
                row[column].ljust(widths[column])
                if column < left or (last and column == len(head) - 1)
                else row[column].rjust(widths[column])
                for column in columns
            ]
            yield "  ".join(texts).rstrip()


def _fitting(widths: Sequence[int], left: int) -> Iterator[list[int]]:
    """The columns of each part of a table: those on the left, and as many others as fit."""
    first = list(range(left))
    columns = first.copy()
    for column in range(left, len(widths)):
        if len(columns) > left and sum(widths[one] + 2 for one in columns) + widths[column] > WIDTH:
            yield columns
            columns = first.copy()
        columns.append(column)
    yield columns
