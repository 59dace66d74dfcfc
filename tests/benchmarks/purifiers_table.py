"""Compare purifiers by the reports of their audits: accuracy along each route, detection, reconstruction error.

``python tests/benchmarks/purifiers_table.py --purifier vae.safetensors audited/vae* --purifier ...`` takes checkpoints,
each with the folders of its reports; each report may cover a part of the images. It adds up the counts. The AUC of
several reports is their mean, weighted by the number of fooled images.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from figures import add_up
from markdown_table import percent

import purifier
from purifier import AuditReport
from purifier.auditing.report import Row
from purifier.data.loading import load_data
from purifier.seeding import SampleGenerator

BATCH = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--purifier", nargs="+", action="append", required=True, metavar="CHECKPOINT FOLDER")
    parser.add_argument(
        "--data", default="fashion-mnist:test", help="DATA spec of the images for the reconstruction error"
    )
    given = parser.parse_args()
    data = load_data(given.data)
    for checkpoint, *folders in given.purifier:
        print(f"{checkpoint}, squared error per pixel on {len(data)} images: {error_of(checkpoint, data):.5f}")
        found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for folder in folders:
            rows = AuditReport.load(folder).rows
            for row in (row for row in rows if row.model == "guarded"):
                budget = f"{row.threat.norm} {row.threat.eps:g}" if row.threat else "none"
                found[rows[-1].attack, budget, row.route or "clean"].append(row)
        for (attack, budget, route), rows in found.items():
            print(f"  {attack:8s} {budget:9s} {route:10s} {line(rows)}")


def line(rows: list[Row]) -> str:
    """The figures of one attack, budget and route, added up over reports."""
    right = add_up(row.result for row in rows if row.result)
    parts = [f"right {percent(right.share, right.interval)} of {right.count}"]
    seen = [row.detection for row in rows if row.detection]
    fooled = sum(each.fooled for each in seen)
    if fooled:
        auc = sum(each.fooled * each.auc.value for each in seen if each.auc) / fooled
        parts.append(f"AUC {auc:.2f} over {fooled} fooled")
    if known := [each.rejected for each in seen if each.rejected]:
        parts.append(f"rejected {add_up(known).share:.1%} of {'the fooled' if fooled else 'all'}")
    return ", ".join(parts)


@torch.no_grad()
def error_of(checkpoint: str, data: purifier.ImageData) -> float:
    """Mean squared change of a pixel by the purifier."""
    chosen, total = purifier.load(checkpoint), 0.0
    for start in range(0, len(data), BATCH):
        indices = range(start, min(start + BATCH, len(data)))
        pixels = data.batch(indices)[0]
        noise = chosen.draw(pixels, SampleGenerator(0, indices))
        total += float((chosen.purify(pixels, noise) - pixels).square().flatten(1).mean(1).sum())
    return total / len(data)


if __name__ == "__main__":
    main()
