"""Certificates by randomised smoothing in front of the shipped classifier, behind purifiers trained for the noise.

``python tests/benchmarks/smoothing_table.py --sigma 0.25 [--sigma 0.5] [--out FOLDER] [--save]``: trains a purifier
for each sigma with the recipe ``denoise`` unless the folder has it, and certifies all test images. A run that was cut
off goes on. ``--save`` writes the rows for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from figures import MEASURED, RESULTS, add_up, measured_table

import purifier
from purifier.auditing.report_json import CERTIFICATES as FILE_NAME
from purifier.data.loading import load_data
from purifier.training.state import state_path

DATA = "fashion-mnist:train:55000"
"""The training images without those that recipe and size were chosen on."""
CONFIG: Mapping[str, Any] = {"channels": 16, "latent": 16, "spatial": True, "blocks": 4}
OPTIMISATION: Mapping[str, Any] = {"optimizer": "muon", "schedule": "cosine", "clip": 1.0, "ema": 0.999}
FIRST: Mapping[str, Any] = {"stability": 30, "epochs": 12, "lr": 5e-3}
LATER: Mapping[str, Any] = {"stability": 30, "consistency": 1, "epochs": 6, "lr": 3e-3}
STAGES: Mapping[float, Sequence[Mapping[str, Any]]] = {0.5: (FIRST, LATER, {**LATER, "seed": 1})}
"""How it is trained for each sigma, every stage from the result of the one before; by default by ``FIRST`` alone."""
RADIUS = 0.25
"""The l2 norm that is certified; sampling an image stops there."""
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=float, action="append", required=True, help="may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS / "smoothing", help="folder for checkpoints, certificates")
    parser.add_argument("--data", default="fashion-mnist:test", help="DATA spec without a part")
    parser.add_argument("--samples", type=int, default=8000, help="at most")
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--part", type=int, default=2500, help="images of each file of certificates")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    given.out = Path(os.path.relpath(given.out))  # certificates name the checkpoint's file
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = Rows()
    for sigma in given.sigma:
        path = given.out / f"sigma-{sigma:g}.safetensors"
        train(path, sigma, given.device)
        rows.append(row(certify(path, sigma, given)))
    print(measured_table(rows))
    if given.save:
        save(rows, given.device)


def train(path: Path, sigma: float, device: str) -> None:
    """Train a purifier for noise of ``sigma``, or go on with it."""
    if path.exists() and not state_path(path).exists():
        return
    stages = STAGES.get(sigma, (FIRST,))
    made = [path.with_stem(f"{path.stem}-{number}") for number in range(1, len(stages))]
    before = None
    for out, how in zip((*made, path), stages, strict=True):
        if not out.exists() or state_path(out).exists():
            stage(out, sigma, how, device, before)
        before = out
    for out in made:
        out.unlink()


def stage(path: Path, sigma: float, how: Mapping[str, Any], device: str, init: Path | None) -> None:
    """Train with the options of ``how``, which are of the recipe but for epochs, lr and seed."""
    options = dict(how)
    given = {name: options.pop(name) for name in ("epochs", "lr", "seed") if name in options}
    recipe = ",".join([f"denoise:noise={sigma:g}", *(f"{name}={value:g}" for name, value in options.items())])
    resume = state_path(path).exists()
    config, settings = dict(CONFIG), {**OPTIMISATION, **given, "recipe": recipe, "init": init, "device": device}
    purifier.train("vae", DATA, path, classifier="demo", config=config, resume=resume, **settings)


def certify(path: Path, sigma: float, given: argparse.Namespace) -> list[purifier.Certificates]:
    """Certify the guard, part by part, as far as the folder named like the checkpoint does not have them."""
    found = []
    for start in range(0, len(load_data(given.data)), given.part):
        folder = path.with_suffix("") / str(start)
        if not (folder / FILE_NAME).exists():
            made = purifier.certify(
                purifier.guard("demo", path),
                f"{given.data}:{start}-{start + given.part}",
                sigma=sigma,
                samples=given.samples,
                first=given.first,
                radius=RADIUS,
                device=given.device,
                out=folder,
            )
            print(
                f"sigma {sigma:g}, from {start}: {made.certified(RADIUS)} at {RADIUS}, {made.seconds:.0f} s", flush=True
            )
        found.append(purifier.Certificates.load(folder))
    return found


def row(parts: Sequence[purifier.Certificates]) -> dict[str, Any]:
    """Right, and right and certified, and how often the guard was asked."""
    first = parts[0]
    found: dict[str, Any] = {"sigma": first.sigma}
    for name, radius in (("right, smoothed", 0.0), (f"certified, l2 {RADIUS:g}", RADIUS)):
        rate = add_up(part.certified(radius) for part in parts)
        found[name] = {"correct": round(rate.correct), "count": rate.count}
    asked = [count for part in parts for count in part.asked or ()]
    minutes = round(sum(part.seconds for part in parts) / 60)
    return found | {"samples at most": first.samples, "on average": round(sum(asked) / len(asked)), "minutes": minutes}


def save(rows: Rows, device: str) -> None:
    """Write the rows, and how they were made."""
    sigmas = " ".join(f"--sigma {row['sigma']:g}" for row in rows)
    name = torch.cuda.get_device_name() if device == "cuda" else "one CPU core for each sigma"
    source = {
        "command": [f"python tests/benchmarks/smoothing_table.py {sigmas} --save"],
        "machine": f"{name}, {platform.machine()}",
        "versions": f"torch {torch.__version__}",
        "date": date.today().isoformat(),
    }
    content = json.dumps({"source": source, "tables": {"table": rows}}, indent=1)
    (MEASURED / "smoothing.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
