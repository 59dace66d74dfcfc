"""How a report's figures and names are written in its tables."""

from __future__ import annotations

from ..attacking.threat import Threat
from .report import WHITE_BOX, AuditReport, Model, Row
from .statistics import Area, Rate

CLEAN_NAME = "clean"
"""The name of rows without an attack."""


def count_text(images: int) -> str:
    """``20 images``."""
    return "1 image" if images == 1 else f"{images} images"


def rate_text(rate: Rate | None) -> str:
    """``93.3% [84.1, 97.4]``: a share with its 95% interval; ``-`` if there is none."""
    return "-" if rate is None else str(rate)


def area_text(area: Area | None) -> str:
    """``0.812 [0.755, 0.861]``: an area with its 95% interval; ``-`` if there is none."""
    return "-" if area is None else f"{area.value:.3f} [{area.interval[0]:.3f}, {area.interval[1]:.3f}]"


def result_text(row: Row | None) -> str:
    """A row's result; with several judgements, on the next line, the share right in all and in most of them."""
    if row is None:
        return "-"
    if row.result is None:
        return "error, see below"
    if row.worst_of_n is None or row.majority is None:
        return rate_text(row.result)
    return f"{rate_text(row.result)}\n({row.worst_of_n.share:.1%}, {row.majority.share:.1%})"


def cost_text(row: Row) -> str:
    """The number of images attacked, and on the next line the cost per image if there are any."""
    if row.threat is None:
        return "-"
    if not row.attacked:
        return "0"
    differentiates = row.gradients_per_image > 0 or row.needs in ("gradient", "latent")
    cost, unit = (row.gradients_per_image, "g") if differentiates else (row.queries_per_image, "q")
    text = f"{cost:.0f}" if cost >= 10 else f"{cost:.1f}".removesuffix(".0")
    return f"{row.attacked}\n{text} {unit}"


def attack_text(row: Row) -> str:
    """The attack's spec, marked with > in a sequence."""
    if row.threat is None:
        return CLEAN_NAME
    return f"> {row.attack}" if row.sequence else row.attack


def route_text(row: Row, report: AuditReport) -> str:
    """The row's route, and the surrogate that ``bpda`` followed if it is the identity."""
    if row.threat is None:
        return "-"
    is_identity = row.route == "bpda" and report.purifier is not None and report.purifier["surrogate"] == "identity"
    return "bpda\n(identity)" if is_identity else row.route or "-"


def threat_text(threat: Threat) -> str:
    return f"{threat.norm} {threat.eps:.4g}"


def sweeps(rows: list[Row], model: Model) -> bool:
    """Whether an attack ran with several numbers of draws, so that rows must name theirs."""
    return len({row.eot for row in rows if row.route in WHITE_BOX and row.model == model}) > 1
