"""Purifiers side by side, from their audits' reports: accuracy along each route, detection, reconstruction error.

``python tests/benchmarks/purifiers_table.py --purifier vae.safetensors audited/vae* --purifier ...`` takes checkpoints,
each with the folders of its reports, which may cover a part of the images each. Counts are added up; an AUC of parts is
their mean, weighted by the images fooled.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import purifier
from purifier.auditing.statistics import wilson
from purifier.data.loading import load_data
from purifier.seeding import SampleGenerator

BATCH = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", nargs="+", action="append", required=True, metavar="CHECKPOINT FOLDER")
    parser.add_argument("--data", default="fashion-mnist:test", help="images whose reconstruction error is measured")
    given = parser.parse_args()
    data = load_data(given.data)
    for checkpoint, *folders in given.purifier:
        print(f"{checkpoint}, squared error a pixel on {len(data)} images: {error_of(checkpoint, data):.5f}")
        found: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for folder in folders:
            rows = json.loads((Path(folder) / "report.json").read_text())["rows"]
            attack = rows[-1]["attack"]
            for row in (row for row in rows if row["model"] == "guarded"):
                threat = row["threat"]
                budget = f"{threat['norm']} {threat['eps']:g}" if threat else "none"
                found[attack, budget, row["route"] or "clean"].append(row)
        for (attack, budget, route), rows in found.items():
            print(f"  {attack:8s} {budget:9s} {route:10s} {line(rows)}")


def line(rows: list[dict[str, Any]]) -> str:
    """What the rows of one attack, budget and route say together."""
    right, count = (int(sum(row[name] for row in rows)) for name in ("correct", "count"))
    low, high = wilson(right, count)
    parts = [f"right {right / count:6.1%} [{low:.1%}, {high:.1%}] of {count}"]
    seen = [row["detection"] for row in rows if row["detection"]]
    fooled = sum(one["fooled"] for one in seen)
    if fooled:
        known = [one for one in seen if one["fooled"]]
        auc = sum(one["fooled"] * one["auc"]["value"] for one in known) / fooled
        parts.append(f"AUC {auc:.2f} over {fooled} fooled")
    rejected = [one["rejected"] for one in seen if one["rejected"]]
    if rejected:
        hits, total = (sum(one[name] for one in rejected) for name in ("correct", "count"))
        parts.append(f"rejected {hits / total:.1%} of {'the fooled' if fooled else 'all'}")
    return ", ".join(parts)


@torch.no_grad()
def error_of(checkpoint: str, data: purifier.data.ImageData) -> float:
    """The mean squared change a purifier makes to a pixel."""
    chosen, total = purifier.load(checkpoint), 0.0
    for start in range(0, len(data), BATCH):
        indices = range(start, min(start + BATCH, len(data)))
        pixels = data.batch(indices)[0]
        noise = chosen.draw(pixels, SampleGenerator(0, indices))
        total += float((chosen.purify(pixels, noise) - pixels).square().flatten(1).mean(1).sum())
    return total / len(data)


if __name__ == "__main__":
    main()
