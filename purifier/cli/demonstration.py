"""What ``purifier demo`` does; in a module of its own, because it imports torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
import typer
from rich.console import Console
from torch import Tensor

from ..atomic import check_writable
from ..attacking.specs import read_attack
from ..attacking.threat import Threat
from ..auditing.audit import audit
from ..auditing.figures import CLEAN_NAME, rate_text
from ..auditing.layout import Column, Sheet
from ..auditing.report import AuditReport
from ..auditing.statistics import Rate
from ..auditing.table import print_doubts
from ..classifiers.loading import load_classifier
from ..data.loading import load_data
from ..errors import ExportError
from ..guards.exporting import export
from ..guards.guard import guard
from ..guards.module import GuardedModule
from ..pictures import Stage, stages, write_strip
from .console import INCONCLUSIVE
from .progress import audit_progress

ATTACK = "pgd"
ROUTES = ("exact", "oblivious")
SHOWN_IMAGES = 8
PURIFIERS = {"plain": "demo-plain", "robust": "demo"}


def demonstrate(out: Path, eps: float, console: Console) -> None:
    """Attack the shipped classifier, alone and behind the shipped purifiers, and export the better guard."""
    began = time.perf_counter()
    check_writable(out)
    threat, data = Threat("linf", eps), load_data("demo")
    classifier = load_classifier("demo")
    guards: dict[str, GuardedModule] = {}
    reports: dict[str, AuditReport] = {}
    saved: list[Path] = []
    for name, spec in PURIFIERS.items():
        guarded = guard(classifier, spec)
        assert isinstance(guarded, GuardedModule)
        with audit_progress() as show:
            report = audit(
                guarded,
                data,
                norm=threat.norm,
                eps=threat.eps,
                attacks=[ATTACK],
                routes=ROUTES,
                progress=show,
            )
        guards[name], reports[name] = guarded, report
        saved.append(report.save(out / name))
    _print(reports, threat, console)
    if not all(report.conclusive for report in reports.values()):
        for report in reports.values():
            print_doubts(report, console)
        console.print(f"\nreports  {' '.join(map(str, saved))}", markup=False)
        raise typer.Exit(INCONCLUSIVE)

    rows, adversarial = _stages(guards, *data.batch(range(SHOWN_IMAGES)), threat)
    exported = export(guards["robust"], out / "guarded.onnx")
    images = {"clean": data.batch(range(len(data)))[0], "adversarial": adversarial["robust"]}
    for kind, pixels in images.items():
        console.print(_compare(exported.path, guards["robust"], kind, pixels), markup=False)
    picture = write_strip(out / "strip.png", rows, data.batch(range(SHOWN_IMAGES))[1], data.classes)
    console.print(
        f"\nreports  {' '.join(map(str, saved))}\nmodel    {exported.path} ({exported.size / 1e6:.1f} MB)\n"
        f"picture  {picture}\ndone in {time.perf_counter() - began:.0f} s",
        markup=False,
    )


def _stages(
    guards: Mapping[str, GuardedModule], pixels: Tensor, labels: Tensor, threat: Threat
) -> tuple[dict[str, Stage], dict[str, Tensor]]:
    """The rows of the picture, and for each guard the adversarial images made through it."""
    rows: dict[str, Stage] = {}
    made: dict[str, Tensor] = {}
    for name, guarded in guards.items():
        found = stages(guarded, pixels, labels, read_attack(ATTACK).attack, threat)
        for images in ("clean", "adversarial"):
            rows[f"undefended, {images}"] = found[f"undefended, {images}"]
        for images in ("clean", "adversarial"):
            rows[f"{name} VAE, {images}, purified"] = found[f"purified, {images}"]
        made[name] = found["adversarial"][0]
    return rows, made


def _print(reports: Mapping[str, AuditReport], threat: Threat, console: Console) -> None:
    """Undefended and guarded side by side: clean, and along each route."""
    first = next(iter(reports.values()))
    columns = {"undefended": _figures(first, "undefended")}
    columns |= {f"{name} VAE": _figures(report, "guarded") for name, report in reports.items()}
    title = f"accuracy on {first.data['count']} images, {threat}, with 95% interval"
    table = Sheet(title, [Column("attack, route", heading=True), *map(Column, columns)])
    for key in _figures(first, "guarded"):
        table.add(key, *(_text(figures[key]) if key in figures else "-" for figures in columns.values()))
    table.print(console)


def _figures(report: AuditReport, model: str) -> dict[str, Rate | None]:
    rows = (row for row in report.rows if row.model == model)
    return {f"{row.attack}, {row.route}" if row.threat else CLEAN_NAME: row.result for row in rows}


def _text(rate: Rate | None) -> str:
    return "error" if rate is None else rate_text(rate)


@torch.no_grad()
def _compare(path: Path, guarded: GuardedModule, kind: str, pixels: Tensor) -> str:
    """Compare the exported file, run in plain onnxruntime, with the guard in torch."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0])
    expected = guarded(pixels)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    if same < len(pixels):
        raise ExportError(
            f"{path} in onnxruntime gives another class than torch on {len(pixels) - same} of {len(pixels)} {kind} "
            "images; do not use it, and report this with the output of `purifier doctor`",
            path,
        )
    return (
        f"{path.name} in onnxruntime: the same class as torch on {same} of {len(pixels)} {kind} images, "
        f"largest difference {(logits - expected).abs().max().item():.1e}"
    )
