"""Defense-VAE's and Defense-GAN's protocol on Fashion-MNIST, the same defences under the exact route, and ours.

``python tests/benchmarks/published_protocol.py train --out protocol`` trains the classifiers A to D, for each a
Defense-VAE (recipe ``denoise``), and with the recipe ``robust`` a purifier for A and one for the four together;
``... audit --out protocol`` attacks what ``train`` made, and the shipped purifiers, behind each classifier;
``... table --out protocol`` prints tables from the reports. Each goes on where it was stopped; ``--classifiers a d``
does these only, so that several commands share the work.

Published: FGSM and RAND-FGSM (alpha 0.05) at linf 0.3 and CW in l2, oblivious (Samangouei et al. 2018, Li & Ji 2018).
There CW has no budget; here its images are moved to the edge of l2 3, along the direction it found. The random step of
RAND-FGSM is a sixth of its budget. Defense-VAE keeps the KL term, which its authors' code weighs with 0, and is half as
wide. Defense-GAN is the preset ``defense-gan`` of ``latent`` on the shipped plain VAE's decoder, its random starts the
same for every image, as an exported file has them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import published_classifiers
import torch
from published_classifiers import NAMES, Ensemble
from robust_table import is_complete
from torch import nn
from torch.nn import functional as F

import purifier
from purifier.assets.build import ROBUST, ROBUST_DATA
from purifier.auditing.report import PROBED
from purifier.contracts.checkpoint import read_tensors, write_tensors
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.loop import train
from purifier.training.optimisation import Optimisation
from purifier.training.state import state_path
from purifier.vocabulary import Norm

PUBLISHED = ("fgsm", "rfgsm:alpha=0.1667")
CW = "cw:steps=100,searches=1,initial_const=1,step_size=0.05"
"""One search of 100 steps, as in Samangouei et al.'s code; there from the weight 100 and without a budget."""
DENOISE = (
    "denoise:attacks=fgsm+rfgsm:alpha=0.1667+cw:steps=30;searches=1;initial_const=3;step_size=0.05;norm=l2;eps=3,"
    "eps=0.2 0.25 0.3 0.35,cached=true"
)
"""CW in a third of its steps: a third of the training images go through it."""
DEFENSE_VAE: Mapping[str, Any] = {
    "config": {"channels": 32, "latent": 128},
    "recipe": DENOISE,
    "epochs": 5,
    "batch_size": 32,
    "lr": 5e-4,
    "precision": "auto",
}
"""Half as wide as Li & Ji's; their rate and epochs, batches of 32 for 16."""
OURS: Mapping[str, Any] = {**ROBUST, "epochs": 6}


@dataclass(frozen=True)
class Trial:
    """One audit: ``count`` test images, attacks at a budget along routes."""

    name: str
    norm: Norm
    eps: float
    attacks: Sequence[str]
    routes: Sequence[str]
    count: int
    batch_size: int = 250
    probes: int = PROBED


def trials(classifier: str, defence: str) -> Iterator[Trial]:
    """What a defence is put through; CW and Defense-GAN, which take seconds an image, on fewer images.

    A gradient through Defense-GAN takes two seconds, so PGD has ten steps there, flags are looked for on four images,
    and the budget 0.1 is for classifier A only.
    """
    gan = defence == "defense-gan"
    many, some, few = (100, 50, 20) if gan else (1000, 500, 1000)
    attacks = ["fgsm", "pgd:steps=10" if gan else "pgd"]
    cost = {"batch_size": 20, "probes": 4} if gan else {}
    yield Trial("published", "linf", 0.3, PUBLISHED, ["oblivious"], many, **cost)
    yield Trial("published-cw", "l2", 3.0, [CW], ["oblivious"], some, **cost)
    yield Trial("exact", "linf", 0.3, attacks, ["exact"], few, **cost)
    if classifier == "a" or not gan:
        yield Trial("exact-0.1", "linf", 0.1, attacks, ["exact"], few, **cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "audit", "table"))
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--classifiers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    keep_freed_memory()
    if given.what == "train":
        given.out.mkdir(parents=True, exist_ok=True)
        train_all(given.out, given.classifiers, given.device)
    elif given.what == "audit":
        if missing := [name for name in given.classifiers if not (given.out / f"{name}.safetensors").exists()]:
            raise SystemExit(f"{given.out} holds no classifier {' or '.join(missing)}; run train first")
        for classifier in given.classifiers:
            for defence in defences(given.out, classifier):
                audit_all(given.out, classifier, defence, given.device)
    else:
        table(given.out)


def defences(out: Path, classifier: str) -> dict[str, str]:
    """Names and PURIFIER specs of what stands in front of a classifier."""
    return {
        "none": "identity",
        "plain VAE": "demo-plain",
        "defense-vae": str(out / f"defense-vae-{classifier}.safetensors"),
        "defense-gan": "latent:base=demo-plain,preset=defense-gan,sample=false",
        "ours, shipped": "demo",
        "ours, for A": str(out / "robust-a.safetensors"),
        "ours, for A-D": str(out / "robust-ensemble.safetensors"),
    }


def train_all(out: Path, names: Sequence[str], device: str) -> None:
    """Classifiers and what is for each; when all four are there, what is for them together."""
    data = load_data(ROBUST_DATA)
    for name in names:
        weights = out / f"{name}.safetensors"
        if not weights.exists():
            train_classifier(name, data, weights, torch.device(device))
        defence = {**DEFENSE_VAE, "device": device}
        train_purifier(out / f"defense-vae-{name}.safetensors", data, classifier_of(out, name), defence)
    ours = {**OURS, "device": device}
    if "a" in names:
        train_purifier(out / "robust-a.safetensors", data, classifier_of(out, "a"), ours)
    if set(names) == set(NAMES):
        everyone = Ensemble([classifier_of(out, name) for name in NAMES])
        train_purifier(out / "robust-ensemble.safetensors", data, everyone, ours)


def train_purifier(path: Path, data: ImageData, classifier: nn.Module, options: Mapping[str, Any]) -> None:
    """Train, or go on, until there is a checkpoint and no state beside it."""
    if state_path(path).exists() or not path.exists():
        train("vae", data, path, classifier=classifier, resume=state_path(path).exists(), **options)
        print(f"{path}", flush=True)


def classifier_of(out: Path, name: str) -> nn.Module:
    classifier: nn.Module = getattr(published_classifiers, name)()
    classifier.load_state_dict(read_tensors(out / f"{name}.safetensors")[0])
    return classifier.eval()


def train_classifier(
    name: str, data: ImageData, path: Path, device: torch.device, epochs: int = 5, batch: int = 128
) -> None:
    """Adam at 1e-3 on clean images; prints the accuracy on the training images held back."""
    torch.manual_seed(NAMES.index(name))
    classifier: nn.Module = getattr(published_classifiers, name)().to(device).train()
    optimizer = torch.optim.Adam(classifier.parameters())
    settings = Optimisation(precision="auto").on(device)
    for _ in range(epochs):
        for indices in torch.randperm(len(data)).split(batch):
            pixels, labels = (part.to(device) for part in data.batch(indices.tolist()))
            with settings.autocast(device):
                logits = classifier(pixels)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))
            optimizer.step()
    held = load_data("fashion-mnist:train:55000-60000")
    pixels, labels = (part.to(device) for part in held.batch(range(len(held))))
    with torch.no_grad():
        right = (classifier.eval()(pixels).argmax(1) == labels).double().mean().item()
    print(f"classifier {name}: {right:.1%} of the images held back", flush=True)
    write_tensors(classifier.state_dict(), path, {})


def audit_all(out: Path, classifier: str, defence: str, device: str) -> None:
    guarded = purifier.guard(classifier_of(out, classifier), defences(out, classifier)[defence])
    for trial in trials(classifier, defence):
        folder = out / "audits" / classifier / defence / trial.name
        if is_complete(folder / "report.json"):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        report = purifier.audit(
            guarded,
            f"fashion-mnist:test:{trial.count}",
            norm=trial.norm,
            eps=trial.eps,
            attacks=trial.attacks,
            routes=trial.routes,
            batch_size=trial.batch_size,
            probes=trial.probes,
            device=device,
        )
        report.save(folder)
        print(f"{folder}", flush=True)


def table(out: Path) -> None:
    """A Markdown table, a row a classifier and defence, a column an attack; then how the figures came about."""
    columns: dict[str, str] = {"clean": ""}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    found = list(reports(out))
    if not found:
        raise SystemExit(f"{out} holds no report of this protocol; run train, then audit, or give docs/published")
    for classifier, defence, report in found:
        cells = lines.setdefault((classifier, defence), {})
        for row in (row for row in report["rows"] if row["model"] == "guarded"):
            attack, threat = row["attack"], row["threat"]
            name = (
                f"{attack.partition(':')[0]} {threat['norm']} {threat['eps']:g} {row['route']}" if threat else "clean"
            )
            own = attack if attack != columns.setdefault(name, attack) and threat else ""
            notes = ", ".join(note for note in (str(row["count"]) if row["count"] < 1000 else "", own) if note)
            figure = "error" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
            flagged = "!" if threat and report["flags"] else ""
            cells.setdefault(name, figure + flagged + (f" ({notes})" if notes else ""))
    print("| classifier | defence | " + " | ".join(columns) + " |\n" + "| --- " * (len(columns) + 2) + "|")
    for (classifier, defence), cells in lines.items():
        print(f"| {classifier.upper()} | {defence} | " + " | ".join(cells.get(name, "-") for name in columns) + " |")
    print("\n1,000 images or (as many), with (another attack than the first); !: flags in the report")
    for defence, count in sorted({(defence, report.get("probes", PROBED)) for _, defence, report in found}):
        if count < PROBED:
            print(f"{defence}: flags were looked for on {count} images, not {PROBED}")
    print("attacks: " + ", ".join(dict.fromkeys(attack for attack in columns.values() if attack)))
    for what in ("seed", "device", "versions"):
        print(f"{what}: " + " or ".join(sorted({str(report[what]) for *_, report in found})))
    print("created: " + " to ".join(pick(report["created"] for *_, report in found) for pick in (min, max)))


def reports(out: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Classifier, defence and report of each audit that is done."""
    for classifier in NAMES:
        for defence in defences(out, classifier):
            for trial in trials(classifier, defence):
                path = out / "audits" / classifier / defence / trial.name / "report.json"
                if path.exists():
                    yield classifier, defence, json.loads(path.read_text())


if __name__ == "__main__":
    main()
