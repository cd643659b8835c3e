"""Tables that fit the terminal, whatever is in them.

A table that is too wide for the terminal first breaks its headers and its longest texts at words. If that is not enough, each row
is printed as a record, one line a column. A name or a figure is never cut or broken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from forebay.cli.terminal import terminal

Cell = str | Text

_GAP = 2
# The narrowest that a column of long texts becomes before rows are printed as records.
_LEAST_TEXT = 14


class Rows:
    """A table under construction.

    A cell that is a string is shown as it is; what is to be styled comes as `Text`.
    """

    def __init__(
        self, *names: str, figures: Sequence[str] = (), more: Sequence[str] = (), texts: Collection[str] = ()
    ) -> None:
        """Makes an empty table.

        Args:
            names: the first columns.
            figures: the columns after them, aligned to the right.
            more: the columns after those.
            texts: which of the columns may be broken at words.
        """
        self._columns = (*names, *figures, *more)
        self._figures = frozenset(figures)
        self._texts = frozenset(texts)
        self._rows: list[list[Text]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, *cells: Cell) -> None:
        """Adds a row; what it leaves out is empty."""
        row = [_shown(cell) for cell in cells]
        self._rows.append(row + [Text("")] * (len(self._columns) - len(row)))

    def print(self, empty: str) -> None:
        """Prints the table, or a sentence where it has no row."""
        terminal().print(self if self._rows else empty, markup=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        if widths is None:
            yield from self._records(options.max_width)
        else:
            yield self._table(widths)

    def _widths(self, room: int) -> list[int] | None:
        """Returns the columns' widths; None where not even the narrowest have room."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._columns)
        cells = [max((line.cell_len for cell in column for line in cell.split()), default=0) for column in columns]
        words = [max((_longest_word(cell) for cell in column), default=0) for column in columns]
        room -= _GAP * (len(self._columns) - 1)
        natural = [max(Text(name).cell_len, width) for name, width in zip(self._columns, cells, strict=True)]
        if sum(natural) <= room:
            return natural
        least = [
            max(_longest_word(Text(name)), max(word, min(width, _LEAST_TEXT)) if name in self._texts else width)
            for name, width, word in zip(self._columns, cells, words, strict=True)
        ]
        if sum(least) > room:
            return None
        for _ in range(room - sum(least)):  # to whichever text lacks most
            short = [wanted - width for wanted, width in zip(natural, least, strict=True)]
            if max(short) <= 0:
                break
            least[short.index(max(short))] += 1
        return least

    def _table(self, widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for name, width in zip(self._columns, widths, strict=True):
            table.add_column(name, width=width, justify="right" if name in self._figures else "left", overflow="fold")
        for row in self._rows:
            table.add_row(*row)
        return table

    def _records(self, room: int) -> RenderResult:
        names = max(map(len, self._columns))
        for number, row in enumerate(self._rows):
            record = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
            record.add_column(style="bold", width=names)
            record.add_column(overflow="fold", width=max(1, room - names - _GAP))
            for name, cell in zip(self._columns, row, strict=True):
                if cell.plain:
                    record.add_row(name, cell)
            yield Padding(record, (1 if number else 0, 0, 0, 0))


def _shown(cell: Cell) -> Text:
    """Returns a cell without what would steer the terminal."""
    text = cell.copy() if isinstance(cell, Text) else Text(cell)
    text.plain = "".join(each if each.isprintable() or each == "\n" else "�" for each in text.plain)
    return text


def _longest_word(text: Text) -> int:
    return max((Text(word).cell_len for word in text.plain.split()), default=0)
