"""Train a robust purifier for Fashion-MNIST whose encoder starts from that of ``demo-certified``.

``python tests/benchmarks/robust_demo.py --out robust.safetensors [--epochs N] [--bounds SHARE] [--steps N]``: a ``vae``
with ``encoder=bounded`` takes the layers of the certified encoder, so that only the decoder starts from nothing, and is
trained by the recipe ``robust`` with bounds in front of the shipped classifier. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import purifier
from purifier.plugins.purifiers.certified import Certified
from purifier.plugins.purifiers.vae import Vae, VaeConfig
from purifier.training.state import state_path

DATA = "fashion-mnist:train:55000"
"""The training images without those that recipe and size were chosen on."""
LATENT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--bounds", type=float, default=0.8, help="the bounds' share of the loss")
    parser.add_argument("--steps", type=int, default=1, help="of the attack that it is trained against")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first = given.out.with_stem(given.out.stem + "-start")
    started = from_certified(purifier.load("demo-certified"))
    purifier.save(started, first)
    purifier.train(
        "vae",
        DATA,
        given.out,
        classifier="demo",
        init=first,
        recipe=f"robust:eps=0.1,bounds={given.bounds:g},steps={given.steps},ramp=0,distillation=0",
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
    return made


if __name__ == "__main__":
    main()
