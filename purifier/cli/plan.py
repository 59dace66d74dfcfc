"""What ``purifier audit --dry-run`` prints."""

from __future__ import annotations

from rich.console import Console

from ..auditing.estimate import Plan
from ..auditing.layout import SPEC_PARTS, Column, Sheet, say
from .progress import duration


def print_plan(plan: Plan, console: Console) -> None:
    """Print each attack with its route, its questions about an image, and about how long it would take."""
    columns = [
        Column("attack", heading=True, breaks=SPEC_PARTS),
        Column("route", heading=True),
        Column("threat", heading=True),
        Column("gradients\nan image"),
        Column("queries\nan image"),
        Column("at most"),
    ]
    sheet = Sheet(f"{plan.images:,} images in batches of {plan.batch_size}", columns)
    for one in plan.jobs:
        job = one.job
        route = job.route if job.model == "guarded" else f"{job.route}, undefended"
        counts = (f"{count:g}" if count else "-" for count in (one.gradients, one.queries))
        sheet.add(job.named.spec, route, str(job.threat), *counts, duration(one.seconds))
    if plan.jobs:
        sheet.print(console)
    else:
        say(console, f"clean images only: {plan.images:,} images in batches of {plan.batch_size}")
    for reason in plan.left_out:
        say(console, f"left out: {reason}", style="dim")
    if plan.jobs:
        say(console, f"self-checks: about {duration(plan.self_checks)}")
        skipping = any(one.job.sequence for one in plan.jobs)
        skips = "; the attacks of the preset skip images that earlier ones have fooled" if skipping else ""
        say(
            console,
            f"in all at most about {duration(plan.seconds)} on this machine (hours:minutes:seconds){skips}. "
            "Nothing was attacked.",
        )
