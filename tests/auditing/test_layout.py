"""Text and tables at any width."""

from __future__ import annotations

import io

from rich.console import Console

from purifier.auditing.layout import Column, Sheet, wrap


def test_text_is_broken_between_words_and_never_inside_a_figure():
    text = "here it rejects 100.0% [67.6, 100.0] of the images"
    assert wrap(text, 30) == ["here it rejects", "100.0% [67.6, 100.0] of the", "images"]
    assert "100.0% [67.6, 100.0]" in wrap(text, 5)
    assert wrap("  why: a bc", 6) == ["  why:", "  a bc"]
    assert wrap("/a/long/path", 5) == ["/a/lo", "ng/pa", "th"]


def test_a_sheet_that_does_not_fit_is_stacked():
    def shown(width: int) -> list[str]:
        console = Console(file=io.StringIO(), width=width)
        sheet = Sheet("title", [Column("attack", heading=True), Column("a\nb"), Column("other")])
        sheet.add("x" * 60, "1", "-")
        sheet.print(console)
        return console.file.getvalue().splitlines()[2:]

    assert shown(72) == ["attack" + " " * 54 + "  a  other", " " * 62 + "b", "─" * 70, "x" * 60 + "  1      -"]
    assert shown(65) == ["x" * 60, "  a b  1"]
