"""The preset ``standard`` against pyautoattack's, and PGD against three libraries: robust accuracy and time.

``python tests/benchmarks/standard_speed.py [--device cuda] [--count 500] [--eps 0.1] [--norm linf]
[--trained FILE.safetensors]`` attacks the same images within the same budget on three classifiers: undefended
(``demo``), trained on PGD's images (read from FILE, or trained and written to it), and guarded (``demo`` behind
``demo-plain``).
Ours is an audit: it projects and judges each image again. Its time is that of the attacks on this classifier, judging
included; the time of the whole audit, with flags and attacks on the classifier alone, follows in brackets. The other
libraries attack the guard as any module. PGD runs in linf only and takes 40 steps of eps / 16 everywhere.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

import purifier
from pgd_speed import Way, art, measure, ours, peer, torchattacks
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.purifier import purifiers
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.guards.module import GuardedModule
from purifier.seeding import SampleGenerator

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
STEPS = 40
ROUTES = ("exact", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=500, help="number of test images")
    parser.add_argument("--norm", default="linf", choices=tuple(NORMS))
    parser.add_argument("--eps", type=float, default=0.1, help="budget")
    parser.add_argument("--batch", type=int, default=250, help="images per batch, for all")
    parser.add_argument("--rounds", type=int, default=3, help="runs of PGD; prints medians")
    parser.add_argument("--only", help="undefended, trained or guarded")
    parser.add_argument(
        "--trained", type=Path, default=Path("standard-speed.safetensors"), help="weights of the trained classifier"
    )
    parser.add_argument("--train-count", type=int, default=20000, help="images it is trained on")
    parser.add_argument("--epochs", type=int, default=2, help="epochs it is trained for")
    given = parser.parse_args()
    demo = load_classifier("demo")
    assert isinstance(demo, nn.Module)
    guards = {
        "undefended": lambda: purifier.guard(demo, "identity"),
        "trained": lambda: purifier.guard(hardened(given), "identity"),
        "guarded": lambda: purifier.guard(demo, "demo-plain"),
    }
    data = load_data(f"fashion-mnist:test:{given.count}")
    print(f"torch {torch.__version__} on {given.device}, {torch.get_num_threads()} threads, {data.name}")
    print(f"{given.norm} {given.eps:g}, batches of {given.batch}; right after the attack, seconds, ratio to ours")
    for name, make in guards.items():
        if given.only in (None, name):
            guarded = make().to(given.device)
            assert isinstance(guarded, GuardedModule)
            guarded.eval().requires_grad_(False)
            compare(name, guarded, data, given)


def compare(name: str, guarded: GuardedModule, data: ImageData, given: argparse.Namespace) -> None:
    """Print the figures of one classifier."""
    threat = Threat(given.norm, given.eps)
    pixels, labels = (part.to(given.device) for part in data.batch(range(len(data))))
    clean = standing(guarded, pixels, labels, given.batch).double().mean().item()
    print(f"{name:10s} {'clean':24s} {clean:6.1%}")
    right, seconds, whole = standard(guarded, data, threat, given)
    line(name, "standard, purifier", right, seconds, seconds, f"   (audit {whole:.1f} s)")
    line(name, "standard, pyautoattack", *autoattack(guarded, pixels, labels, threat, given), seconds)
    if threat.norm == "linf":
        ways: dict[str, Way] = {
            "purifier": ours(guarded, threat.eps, STEPS),
            "foolbox": foolbox(guarded, threat.eps),
            "torchattacks": torchattacks(guarded, threat.eps, STEPS),
            "ART": art(guarded, threat.eps, STEPS),
        }
        medians, rights = measure(ways, guarded, pixels, labels, given.rounds)
        for way, median in medians.items():
            line(name, f"pgd-{STEPS}, {way}", rights[way], median, medians["purifier"])


def line(name: str, way: str, right: float, seconds: float, base: float, rest: str = "") -> None:
    print(f"{name:10s} {way:24s} {right:6.1%} {seconds:9.2f} s {seconds / base:6.2f}x{rest}", flush=True)


def standard(
    guarded: GuardedModule, data: ImageData, threat: Threat, given: argparse.Namespace
) -> tuple[float, float, float]:
    """Robust accuracy, seconds of the attacks on the guard, seconds of the whole audit."""
    began = time.perf_counter()
    report = purifier.audit(
        guarded,
        data,
        norm=threat.norm,
        eps=threat.eps,
        preset="standard",
        routes=ROUTES,
        batch_size=given.batch,
        device=given.device,
    )
    whole = time.perf_counter() - began
    rows = [row for row in report.rows if row.model == "guarded" and row.route in ROUTES and row.threat]
    assert not [row.error for row in rows if row.error]
    (case,) = (case for case in report.worst_case if case.model == "guarded" and case.scope == "all")
    return case.result.share, sum(row.seconds for row in rows), whole


def autoattack(
    module: nn.Module, pixels: Tensor, labels: Tensor, threat: Threat, given: argparse.Namespace
) -> tuple[float, float]:
    """Robust accuracy and seconds of pyautoattack's standard."""
    library = peer("pyautoattack", "pyautoattack")
    ensemble = library.AutoAttack(
        module, norm=NORMS[threat.norm], eps=threat.eps, device=torch.device(given.device), seed=0
    )
    began = time.perf_counter()
    found, _ = ensemble.run_standard_evaluation(pixels, labels, batch_size=given.batch)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    both = standing(module, threat.project(found, pixels), labels, given.batch)
    both &= standing(module, pixels, labels, given.batch)
    return both.double().mean().item(), seconds


def foolbox(module: nn.Module, eps: float) -> Way:
    library = peer("foolbox", "foolbox")
    model = library.PyTorchModel(module, bounds=(0, 1), device=next(module.parameters()).device)
    attack = library.attacks.LinfPGD(steps=STEPS, rel_stepsize=2.5 / STEPS)
    return lambda pixels, labels: attack(model, pixels, labels, epsilons=eps)[1]


@torch.no_grad()
def standing(module: nn.Module, pixels: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Which images the module classifies correctly, bool (N,)."""
    logits = torch.cat([module(part) for part in pixels.split(batch)])
    return logits.argmax(1) == labels


def hardened(given: argparse.Namespace) -> nn.Module:
    """A small classifier trained on PGD's images (Madry et al. 2018), linf 0.1; from the file if it exists."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).to(given.device)
    if given.trained.is_file():
        net.load_state_dict(safetensors.torch.load_file(given.trained, device=given.device))
        return net.eval()
    began = time.perf_counter()
    pixels, labels = load_data(f"fashion-mnist:train:{given.train_count}").batch(range(given.train_count))
    identity = purifiers.get("identity")
    same, seen = identity(identity.Config()), TorchPixelClassifier(net, Preprocessing())
    attack, threat = read_attack("pgd:steps=7").attack, Threat("linf", 0.1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for epoch in range(given.epochs):
        for part in torch.randperm(len(pixels)).split(100):
            batch, right = pixels[part].to(given.device), labels[part].to(given.device)
            streams = SampleGenerator(epoch, part.tolist())
            # On this route PGD runs all steps on every image, as Madry et al. train.
            found = attack.perturb(Target(seen, same, "oblivious", streams), batch, right, threat, streams)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(found), right).backward()
            optimizer.step()
    safetensors.torch.save_file(net.state_dict(), given.trained)
    print(f"trained on pgd's images of {threat} in {time.perf_counter() - began:.0f} s, kept in {given.trained}")
    return net.eval()


if __name__ == "__main__":
    main()
