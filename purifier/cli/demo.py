"""``purifier demo``: the main job, offline, on what is shipped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import onnxruntime
import torch
import typer

from ..audit import audit, check_writable, print_report, read_attack
from ..classifier import load_classifier
from ..data import load_data
from ..errors import ExportError
from ..exporting import export
from ..guard import guard
from ..strips import stages, write_strip
from ..threat import Threat
from .audit import INCONCLUSIVE
from .console import plain_console
from .progress import audit_progress

ATTACK = "pgd"
SHOWN = 8


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("purifier-demo"),
    eps: Annotated[float, typer.Option(help="Budget of the linf attack, in pixels of [0, 1].")] = 0.1,
) -> None:
    """Guard, audit and export a shipped Fashion-MNIST classifier with a shipped purifier, on shipped test images."""
    began = time.perf_counter()
    console = plain_console(soft_wrap=True)
    check_writable(out)
    threat, data = Threat("linf", eps), load_data("demo")
    classifier = load_classifier("demo")
    assert isinstance(classifier, torch.nn.Module)
    guarded = guard(classifier, "demo")

    with audit_progress(console) as show:
        report = audit(guarded, data, norm=threat.norm, eps=threat.eps, attacks=[ATTACK], progress=show)
    saved = report.save(out)
    print_report(report, console)
    if not report.complete:
        console.print(f"\nreport   {saved}", markup=False)
        raise typer.Exit(INCONCLUSIVE)

    exported = export(guarded, out / "guarded.onnx")
    console.print(f"\n{_compare(exported.path, guarded, data.batch(range(len(data))))}", markup=False)

    pixels, labels = data.batch(range(SHOWN))
    rows = stages(guarded, pixels, labels, read_attack(ATTACK).attack, threat)
    picture = write_strip(out / "strip.png", rows, labels, data.classes)
    model = f"{exported.path} ({exported.size / 1e6:.1f} MB)"
    console.print(f"\nreport   {saved}\nmodel    {model}\npicture  {picture}", markup=False)
    console.print(f"done in {time.perf_counter() - began:.0f} s")


@torch.no_grad()
def _compare(path: Path, guarded: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> str:
    """Run the exported file in plain onnxruntime on all images, beside torch."""
    pixels, labels = batch
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0])
    expected = guarded(pixels)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    if same < len(labels):
        raise ExportError(
            f"{path} in onnxruntime gives another class than torch on {len(labels) - same} of {len(labels)} images; "
            "do not use it, and report this with the output of `purifier doctor`",
            path,
        )
    right = (logits.argmax(1) == labels).float().mean().item()
    return (
        f"{path.name} in onnxruntime: the same class as torch on {same} of {len(labels)} images, "
        f"{right:.1%} right, largest difference {(logits - expected).abs().max().item():.1e}"
    )
