"""The protocol of Defense-VAE and Defense-GAN on Fashion-MNIST; those defences and ours, also along the exact route.

``python tests/benchmarks/published_protocol.py train --out protocol`` trains the classifiers A to D, a Defense-VAE for
each (recipe ``denoise``), and with the recipe ``robust`` one purifier for A and one for all four.
``... audit --out protocol`` attacks each classifier behind each of these and behind the shipped purifiers.
``... table --out protocol`` prints tables of the reports. Each command continues where it was stopped;
``--classifiers a d`` limits it to some classifiers, so that several processes can share the work.

Published: FGSM and RAND-FGSM (alpha 0.05) at linf 0.3 and CW in l2, oblivious (Samangouei et al. 2018, Li & Ji 2018).
There CW has no budget; here its images are moved to the edge of l2 3, along the direction it found. The random step of
RAND-FGSM is a sixth of its budget. Defense-VAE keeps the KL term, which its authors' code multiplies by 0, and is half
as wide. Defense-GAN is the preset ``defense-gan`` of ``latent`` on the decoder of the shipped plain VAE; all images
share the random starts, as in an exported file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import published_classifiers
import torch
from figures import RESULTS, facts
from published_classifiers import Ensemble
from published_tables import (
    CLASSIFIERS,
    classifier_table,
    finished_audits,
    notes,
    planned_audits,
    report_folder,
    transfer_table,
)
from robust_table import is_complete
from small_vae import CHECKPOINT, TRAINING
from torch import nn
from torch.nn import functional as F

import purifier
from purifier.assets.build import SELECTED_DATA
from purifier.contracts.checkpoint import read_tensors, write_tensors
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.loop import train
from purifier.training.optimisation import Optimisation
from purifier.training.state import state_path

DENOISE = (
    "denoise:attacks=fgsm+rfgsm:alpha=0.1667+cw:steps=30;searches=1;initial_const=3;step_size=0.05;norm=l2;eps=3,"
    "eps=0.2 0.25 0.3 0.35,cached=true"
)
"""CW with a third of its steps: a third of the training images go through it."""
DEFENSE_VAE: Mapping[str, Any] = {
    "config": {"channels": 32, "latent": 128},
    "recipe": DENOISE,
    "epochs": 5,
    "batch_size": 32,
    "lr": 5e-4,
    "precision": "auto",
}
"""Half as wide as Li & Ji's; their rate and epochs, batches of 32 for 16."""
OURS: Mapping[str, Any] = {**TRAINING, "epochs": 6}
COMMITTED = RESULTS / "published"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "audit", "table"))
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and reports")
    parser.add_argument("--classifiers", nargs="+", choices=CLASSIFIERS, default=CLASSIFIERS)
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
        print_tables(given.out)


def defences(out: Path, classifier: str) -> dict[str, str]:
    """PURIFIER spec of each defence."""
    return {
        "none": "identity",
        "plain-vae": "demo-plain",
        "defense-vae": str(out / f"defense-vae-{classifier}.safetensors"),
        "defense-gan": "latent:base=demo-plain,preset=defense-gan,sample=false",
        "ours-shipped": str(CHECKPOINT),
        "ours-for-a": str(out / "robust-a.safetensors"),
        "ours-for-a-d": str(out / "robust-ensemble.safetensors"),
    }


def train_all(out: Path, names: Sequence[str], device: str) -> None:
    """Train the classifiers and the purifiers for each; when all four exist, the one for all of them too."""
    data = load_data(SELECTED_DATA)
    for name in names:
        weights = out / f"{name}.safetensors"
        if not weights.exists():
            train_classifier(name, data, weights, torch.device(device))
        defence = {**DEFENSE_VAE, "device": device}
        train_purifier(out / f"defense-vae-{name}.safetensors", data, classifier_of(out, name), defence)
    ours = {**OURS, "device": device}
    if "a" in names:
        train_purifier(out / "robust-a.safetensors", data, classifier_of(out, "a"), ours)
    if set(names) == set(CLASSIFIERS):
        everyone = Ensemble([classifier_of(out, name) for name in CLASSIFIERS])
        train_purifier(out / "robust-ensemble.safetensors", data, everyone, ours)


def train_purifier(path: Path, data: ImageData, classifier: nn.Module, options: Mapping[str, Any]) -> None:
    """Train, or continue a training that was stopped."""
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
    """Train with Adam at 1e-3 on clean images; print the accuracy on the held-out training images."""
    torch.manual_seed(CLASSIFIERS.index(name))
    classifier: nn.Module = getattr(published_classifiers, name)().to(device).train()
    optimizer = torch.optim.Adam(classifier.parameters())
    settings = Optimisation(precision="bfloat16" if device.type == "cuda" else "float32")
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
    print(f"classifier {name}: {right:.1%} of the held-out images", flush=True)
    write_tensors(classifier.state_dict(), path, {})


def audit_all(out: Path, classifier: str, defence: str, device: str) -> None:
    guarded = purifier.guard(classifier_of(out, classifier), defences(out, classifier)[defence])
    for planned in planned_audits(classifier, defence):
        folder = report_folder(out, classifier, defence, planned)
        if is_complete(folder / "report.json"):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        report = purifier.audit(
            guarded,
            f"fashion-mnist:test:{planned.count}",
            norm=planned.norm,
            eps=planned.eps,
            attacks=planned.attacks,
            routes=planned.routes,
            batch_size=planned.batch_size,
            probes=planned.probes,
            device=device,
        )
        report.save(folder)
        print(f"{folder}", flush=True)


def print_tables(out: Path) -> None:
    audits = finished_audits(out)
    if not audits:
        raise SystemExit(f"{out} holds no report of this protocol; run train, then audit, or give {COMMITTED}")
    for classifier in dict.fromkeys(each.classifier for each in audits):
        print(f"classifier {classifier.upper()}\n\n{classifier_table(audits, classifier)}\n")
    print(f"one purifier in front of several classifiers\n\n{transfer_table(audits)}\n")
    print("\n".join([*notes(audits), *facts([each.report for each in audits])]))


if __name__ == "__main__":
    main()
