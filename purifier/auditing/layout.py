"""Text and tables at any width: no figure is ever cut, and none is broken over two lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

STACKED_BELOW = 70
"""Terminals narrower than this many columns get a block of lines for each row."""
NARROWEST = 10
"""Smallest width of a column whose texts may be broken."""
WIDEST_FIGURE = len("100.0% [100.0, 100.0]")
GAP = "  "
FIGURE = r"-?\d[\d.]*%? \[[^\]]*\]"
"""A share or an area with its interval, as in ``93.3% [84.1, 97.4]``."""
WORDS = re.compile(rf"(?:{FIGURE}|sha256 \S|\S)+\s*")
SPEC_PARTS = re.compile(r"[^\s,:/+]+[\s,:/+]*|[\s,:/+]+")
"""Where specs and paths may be broken: after a comma, colon, slash or plus."""


@dataclass(frozen=True)
class Column:
    """A column of a sheet."""

    name: str
    """May have several lines; becomes a single one in a block."""
    heading: bool = False
    """Whether it says which row this is, and therefore stands above the row's block."""
    breaks: re.Pattern[str] | None = None
    """Pieces of its texts that stay whole where the column is too narrow; None: its lines are never broken."""

    @property
    def lines(self) -> list[str]:
        return self.name.split("\n")


@dataclass
class Sheet:
    """A table, printed side by side where that fits, otherwise as a block of "name  value" lines for each row."""

    title: str
    columns: Sequence[Column]
    rows: list[list[str]] = field(default_factory=list)
    """Texts, one for each column; each may have several lines. Empty texts and ``-`` are left out of blocks."""
    style: str = ""

    def add(self, *cells: str) -> None:
        """Add a row."""
        assert len(cells) == len(self.columns)
        self.rows.append(list(cells))

    def print(self, console: Console) -> None:
        """Print the table to fit the console's width."""
        show(console, "")
        say(console, self.title, style="italic")
        widths = self._widths(console.width)
        if widths is None:
            self._print_blocks(console)
        else:
            self._print_side_by_side(console, widths)

    def _widths(self, available: int) -> list[int] | None:
        """The width of each column side by side; None if that does not fit."""
        if available < STACKED_BELOW:
            return None
        widths = [
            max(cell_len(line) for text in (column.name, *texts) for line in text.split("\n"))
            for column, texts in zip(self.columns, zip(*self.rows, strict=True), strict=True)
        ]
        surplus = sum(widths) + len(GAP) * (len(widths) - 1) - available
        for at, column in enumerate(self.columns):
            if surplus > 0 and column.breaks is not None:
                least = max(NARROWEST, *map(cell_len, column.lines))
                saved = min(surplus, max(0, widths[at] - least))
                widths[at] -= saved
                surplus -= saved
        return widths if surplus <= 0 else None

    def _print_side_by_side(self, console: Console, widths: Sequence[int]) -> None:
        self._print_row(console, [column.lines for column in self.columns], widths, "bold")
        show(console, "─" * (sum(widths) + len(GAP) * (len(widths) - 1)), "dim")
        for row in self.rows:
            cells = [
                text.split("\n") if column.breaks is None else wrap(text, width, column.breaks)
                for text, column, width in zip(row, self.columns, widths, strict=True)
            ]
            self._print_row(console, cells, widths, self.style)

    def _print_row(self, console: Console, cells: Sequence[list[str]], widths: Sequence[int], style: str) -> None:
        for line in zip_longest(*cells, fillvalue=""):
            padded = [
                _pad(text, width, right=not column.heading)
                for text, column, width in zip(line, self.columns, widths, strict=True)
            ]
            show(console, GAP.join(padded).rstrip(), style)

    def _print_blocks(self, console: Console) -> None:
        names = [" ".join(column.lines) for column in self.columns]
        for row in self.rows:
            cells = [(column, name, text) for column, name, text in zip(self.columns, names, row, strict=True)]
            heads = [" ".join(text.split()) for column, _, text in cells if column.heading and text not in ("", "-")]
            for line in wrap(", ".join(heads), console.width, SPEC_PARTS):
                show(console, line, "bold")
            print_pairs(
                console,
                [(name, text) for column, name, text in cells if not column.heading and text not in ("", "-")],
                indent=GAP,
            )


def print_pairs(console: Console, pairs: Sequence[tuple[str, str]], *, indent: str = "") -> None:
    """Print lines of "name  value": the values below each other, and each wrapped where it stands."""
    room = console.width - len(indent) - len(GAP)
    longest = max((cell_len(name) for name, _ in pairs), default=0)
    left = min(longest, max(1, room - WIDEST_FIGURE))
    for name, value in pairs:
        values = [line for part in value.split("\n") for line in wrap(part, max(1, room - left))]
        for before, after in zip_longest(wrap(name, left), values, fillvalue=""):
            show(console, f"{indent}{_pad(before, left, right=False)}{GAP}{after}".rstrip())


def say(console: Console, text: str, *, lead: str = "", style: str = "", lead_style: str = "") -> None:
    """Print a paragraph, wrapped between words; ``lead`` is its beginning, in a style of its own."""
    for number, line in enumerate(wrap(lead + text, console.width)):
        shown = Text(line, style=style)
        if lead_style and not number:
            shown.stylize(lead_style, 0, len(lead.rstrip(": ")))
        console.print(shown, soft_wrap=True)


def show(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: no markup, no cutting."""
    console.print(Text(line, style=style), soft_wrap=True)


def wrap(text: str, width: int, pieces: re.Pattern[str] = WORDS) -> list[str]:
    """Break a text into lines of at most ``width`` between ``pieces``; a longer piece is cut unless it is a figure.

    Lines of the text stay lines, and a line's indent is kept for the lines that it is broken into.
    """
    return [line for part in text.split("\n") for line in _wrap_line(part, width, pieces)]


def _wrap_line(text: str, width: int, pieces: re.Pattern[str]) -> list[str]:
    indent = text[: len(text) - len(text.lstrip())]
    lines = [indent]
    for piece in pieces.findall(text.strip()):
        if cell_len(lines[-1] + piece.rstrip()) > width and lines[-1] != indent:
            lines.append(indent)
        lines[-1] += piece
        while cell_len(lines[-1].rstrip()) > width > len(indent) and not re.search(FIGURE, piece):
            lines[-1:] = [lines[-1][:width], indent + lines[-1][width:]]
    return [line.rstrip() for line in lines]


def _pad(text: str, width: int, *, right: bool) -> str:
    room = " " * max(0, width - cell_len(text))
    return room + text if right else text + room
