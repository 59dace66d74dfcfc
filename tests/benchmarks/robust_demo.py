"""Train a robust purifier for Fashion-MNIST whose encoder starts from that of a certified one.

``python tests/benchmarks/robust_demo.py --out robust.safetensors [--certified CHECKPOINT] [--epochs N] [--bounds SHARE]
[--steps N]``: a ``vae`` with ``encoder=bounded`` takes the layers of the certified encoder. Its decoder first learns
for one epoch what that encoder, which stays as it is, tells of attacked images; then both are trained by the recipe
``robust`` with bounds. The shipped classifier answers throughout. A run that was stopped goes on. The best encoder so
far is the first one of ``purifier.assets.build certified``, trained for 10 epochs more with ``--recipe
certified:clean=0.8,steps=6,warmup=0,ramp=0 --batch-size 256 --lr 4e-3 --ema 0.999``.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import purifier
from purifier.assets.classifier import demo_classifier
from purifier.attacking.threat import Threat
from purifier.data.loading import load_data
from purifier.plugins.purifiers.certified import Certified
from purifier.plugins.purifiers.vae import Vae, VaeConfig
from purifier.training.inner_attack import climb
from purifier.training.state import state_path

DATA = "fashion-mnist:train:55000"
"""The training images without those that recipe and size were chosen on."""
LATENT = 64
EPS = 0.1
STEPS = 4
"""Of the attack that the decoder is fitted against."""
SCORES, OTHERS = 0.2, 0.1
"""The first values of the latent begin as the scores times the one, all others as random ones times the other."""
RECONSTRUCTION = 0.784
"""The recipe's weight of the purifier's own loss."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--certified", default="demo-certified", help="a checkpoint of the purifier certified")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--bounds", type=float, default=0.2, help="the bounds' share of the loss")
    parser.add_argument("--steps", type=int, default=4, help="of the attack that it is trained against")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first = given.out.with_stem(given.out.stem + "-start")
    if not first.exists():
        started = from_certified(purifier.load(given.certified))
        fit_decoder(started)
        purifier.save(started, first)
    purifier.train(
        "vae",
        DATA,
        given.out,
        classifier="demo",
        init=first,
        recipe=f"robust:eps={EPS},reconstruction={RECONSTRUCTION},bounds={given.bounds:g},steps={given.steps},"
        "ramp=0,distillation=0",
        epochs=given.epochs,
        batch_size=256,
        lr=given.lr,
        precision="float32",
        resume=state_path(given.out).exists(),
    )
    first.unlink()


def from_certified(certified: purifier.Purifier) -> Vae:
    """A ``vae`` with a new decoder, whose encoder scores classes as the certified purifier scores components."""
    assert isinstance(certified, Certified)
    old = certified.config
    config = VaeConfig(
        image_shape=old.image_shape,
        channels=old.channels // 3,
        depth=old.depth,
        latent=LATENT,
        encoder="bounded",
        classes=old.classes,
    )
    made = Vae(config)
    layers = {name.replace("last.", "scores."): value for name, value in certified.state_dict().items()}
    del layers["images"]
    missing, unexpected = made.encoder.load_state_dict(layers, strict=False)
    assert not unexpected and set(missing) == {"last.weight", "last.bias"}, (missing, unexpected)
    with torch.no_grad():
        scores, last = made.encoder.scores, made.encoder.last
        last.weight[:LATENT] *= OTHERS
        last.weight[: old.classes] = SCORES * scores.weight
        last.bias[: old.classes] = SCORES * scores.bias
    return made


def fit_decoder(made: Vae) -> None:
    """Learn the decoder, and the latent's mean from the values before it, of attacked images for one epoch."""
    made.requires_grad_(False)
    learned = [*made.decoder.requires_grad_(True).parameters(), *made.encoder.last.requires_grad_(True).parameters()]
    classifier, data = demo_classifier().eval().requires_grad_(False), load_data(DATA)
    optimizer = torch.optim.Adam(learned, lr=2e-3)

    def loss_of(labels: Tensor, attacked: Tensor) -> Tensor:
        return F.cross_entropy(classifier(made.purify(attacked)), labels, reduction="sum")

    made.eval()
    order = torch.randperm(len(data)).split(256)
    for step, (pixels, labels) in enumerate(data.batches([part.tolist() for part in order])):
        start = pixels + EPS * torch.empty_like(pixels).uniform_(-1, 1)
        attacked = climb(partial(loss_of, labels), start, pixels, Threat("linf", EPS), STEPS, 2 * EPS / STEPS)
        purified = made.purify(attacked)
        loss = F.cross_entropy(classifier(purified), labels)
        loss = loss + RECONSTRUCTION * F.binary_cross_entropy(purified, pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"decoder alone, step {step} of {len(order)}: loss {float(loss.detach()):.3f}", flush=True)


if __name__ == "__main__":
    main()
