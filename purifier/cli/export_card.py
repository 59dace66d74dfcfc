"""What ``purifier export`` prints of the card beside a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = ("MB", "ms", "agreement", "clean", "guard clean", "robust")


def print_card(card: Mapping[str, Any], console: Console) -> None:
    """The card's table, and below it where the figures come from and which are missing."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("precision", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    clean, robust, latency = card["clean"] or {}, card["robust"] or {}, card["latency"]
    shares = (clean.get("agreement"), clean.get("accuracy"), clean.get("guard_accuracy"), robust.get("accuracy"))
    table.add_row(
        card["precision"],
        f"{card['bytes'] / 1e6:.2f}",
        f"{latency['median_ms']:.2f}",
        *("-" if share is None else f"{share:.1%}" for share in shares),
    )
    console.print(table)
    for line in lines_of(card):
        console.print(line, markup=False)


def lines_of(card: Mapping[str, Any]) -> list[str]:
    """What the table's figures mean."""
    latency, clean, robust, beside = card["latency"], card["clean"], card["robust"], card["external_data"]
    threads = "1 thread" if latency["threads"] == 1 else f"{latency['threads']} threads"
    lines = [
        f"ms: median of {latency['calls']} calls with a batch of {latency['batch']}, {latency['provider']}, {threads}",
    ]
    if "calibration" in card:
        lines.append(f"calibrated on {card['calibration']['images']} images of {card['calibration']['data']}")
    if clean is None:
        lines.append("agreement, clean and robust accuracy were not measured; give --data")
    else:
        lines.append(f"agreement, clean: {clean['images']} images; agreement is with the guard's classes")
    if robust is not None and "missing" in robust:
        lines.append(f"robust accuracy was not measured: {robust['missing']}")
    elif robust is not None:
        low, high = robust["interval"]
        lines.append(
            f"robust: {robust['attack']}, {robust['route']}, {robust['threat']}, on the file itself; "
            f"{robust['images']} images, {robust['clean']:.1%} of them right when clean, 95% interval {low:.1%} to "
            f"{high:.1%}; right is {_right(robust)}"
        )
        if robust["flags"]:
            lines.append(f"flags: {', '.join(robust['flags'])}; robust accuracy may be lower, see the audit page")
    if beside is not None:
        lines.append(f"weights {beside['file']}, keep it beside the file")
    return [*lines, f"sha256 {card['sha256']}"]


def _right(robust: Mapping[str, Any]) -> str:
    return "the label" if robust["labels"] == "of the data" else "the guard's answer to the clean image"
