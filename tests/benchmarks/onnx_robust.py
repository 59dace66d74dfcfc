"""Robust accuracy of ONNX files beside that of their torch originals: same images, attacks, budgets and seeds.

``python tests/benchmarks/onnx_robust.py --cifar DATA --weights FILE [--count 200] [--only NAME] [--save]`` exports
three torch models and audits original and file alone, both white-box: the shipped classifier; the shipped robust guard,
whose file has the purifier inside; and the published ResNet-20 for CIFAR-10 (``cifar_resnet.py``), on images of DATA.
For every attack it counts the images that are right under it in torch and in ONNX, and those that differ. ``--save``
also writes the rows to ``results/measured/onnx-robust.json``, from which ``benchmarks_page.py`` makes a table.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from cifar_resnet import resnet20
from figures import MEASURED, measured_table
from small_vae import CHECKPOINT
from torch import Tensor, nn

import purifier
from purifier import AuditReport
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.weights import load_weights, read_weights
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.onnx.torch_export import export_module

IMAGENET = purifier.Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ATTACKS = ("pgd", "apgd-ce")
BUDGETS = {"demo": 0.012, "demo behind small VAE": 0.15, "ResNet-20": 0.35 / 255}
"""In linf, such that 30 to 70% of the images stay right."""


class Whole(nn.Module):
    """A guard as a classifier, so that its attacks have the seeds of those on its file."""

    def __init__(self, guarded: nn.Module) -> None:
        super().__init__()
        self.guarded = guarded

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.guarded(images)
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", default="folder:cifar/test", help="DATA spec of CIFAR-10's test images")
    parser.add_argument("--weights", type=Path, default=Path("cifar10-resnet20.safetensors"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", choices=BUDGETS)
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, original, file, data, reading in models(given, Path(folder)):
            for row in compared(name, original, file, data, reading):
                rows.append(row)
                print(*row.values(), sep=" | ", flush=True)
    print(measured_table(rows))
    if given.save:
        save(rows)


def models(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, nn.Module, Path, ImageData, dict[str, Any]]]:
    """Name, torch model, its file, images, and how it wants them."""
    wanted = BUDGETS if given.only is None else (given.only,)
    if "demo" in wanted:
        classifier = load_classifier("demo")
        assert isinstance(classifier, nn.Module)
        path = exported(classifier, folder / "demo.onnx", (1, 28, 28))
        yield "demo", classifier, path, load_data(f"demo:{given.count}"), {}
    if "demo behind small VAE" in wanted:
        guarded = purifier.guard("demo", CHECKPOINT)
        path = purifier.export(guarded, folder / "guarded.onnx").path
        yield "demo behind small VAE", Whole(guarded).eval(), path, load_data(f"demo:{given.count}"), {}
    if "ResNet-20" in wanted:
        net = resnet20()
        load_weights(net, read_weights(given.weights), given.weights)
        path = exported(net.eval(), folder / "resnet20.onnx", (3, 32, 32))
        images = load_data(given.cifar)
        pixels, labels = images.batch(images.spread(given.count))
        data = ImageData(f"CIFAR-10, {given.count} test images", pixels, labels)
        yield "ResNet-20", net, path, data, {"preprocessing": IMAGENET}


def exported(module: nn.Module, path: Path, shape: tuple[int, int, int]) -> Path:
    onnx.save(export_module(module, [torch.rand(2, *shape)], free=[[0]], inputs=["images"], outputs=["logits"]), path)
    return path


def compared(
    name: str, original: nn.Module, file: Path, data: ImageData, reading: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row for clean images and for each attack."""
    eps = BUDGETS[name]
    by_torch, by_onnx = (
        purifier.audit(model, data, attacks=ATTACKS, eps=eps, probes=2, seed=0, **reading) for model in (original, file)
    )
    for place, (one, other) in enumerate(zip(by_torch.rows, by_onnx.rows, strict=True)):
        assert one.result is not None and other.result is not None, (one.error, other.error)
        yield {
            "model": name,
            "linf": f"{eps:.4g}",
            "attack": "clean" if one.threat is None else one.attack,
            "route": one.route or "",
            "torch": {"correct": one.result.correct, "count": one.result.count},
            "ONNX": {"correct": other.result.correct, "count": other.result.count},
            "images that differ": int((right(by_torch, place) != right(by_onnx, place)).sum()),
        }


def right(report: AuditReport, place: int) -> Any:
    """Which images are right in a row, bool (N,)."""
    assert report.results is not None
    return report.results.counted[place] > 0.5


def save(rows: list[dict[str, Any]]) -> None:
    """Write the rows; those of other models that are there already stay."""
    path = MEASURED / "onnx-robust.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["tables"]["table"] if path.exists() else []
    measured = {row["model"] for row in rows}
    kept = [*rows, *(row for row in earlier if row["model"] not in measured)]
    kept.sort(key=lambda row: list(BUDGETS).index(row["model"]))
    versions = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, torch {torch.__version__}"
    options = "--cifar folder:cifar/test --weights cifar10-resnet20.safetensors --save"
    source = {
        "command": [f"python tests/benchmarks/onnx_robust.py {options}"],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": versions,
        "date": date.today().isoformat(),
        "seed": 0,
    }
    text = json.dumps({"source": source, "tables": {"table": kept}}, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
