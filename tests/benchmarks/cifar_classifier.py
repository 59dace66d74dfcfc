"""The stock classifier of the CIFAR-10 benchmarks: a small convolutional net, trained on clean images only.

``python tests/benchmarks/cifar_classifier.py --data folder:cifar/train --out stock.safetensors [--epochs N]`` trains on
all but the last 5,000 of the shuffled images, and prints the share that it gets right of those. A run that was stopped
goes on after its last whole epoch. With ``--init CHECKPOINT`` it starts from the weights of an earlier run, with
several from their mean (Wortsman et al. 2022, "Model soups"), which ``--epochs 0`` writes as it is. With ``--mix``
images are mixed instead of cut out. ``--architecture`` trains those of ``cifar_variety.py``. Other scripts and
``purifier audit --classifier cifar_classifier:stock --weights stock.safetensors`` (with this folder in ``PYTHONPATH``)
use it afterwards. The architecture follows Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3,
with fewer channels and a third convolution in each group.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from cifar_variety import pooled, strided
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import CutMix

from purifier.atomic import atomic_path
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.seeding import SampleGenerator
from purifier.torch_tools.memory import keep_freed_memory
from purifier.training.augmentation import augmented
from purifier.training.optimisation import Follower, Optimisation

HELD_BACK = 5_000
BATCH = 250
WIDTHS = (64, 192, 256)
LARGER = 1.42
"""Times these widths a classifier has as many weights as the stock one and a purifier of ``cifar_training.py``."""
CUT_OUT = 10
"""The side of the square that is cut out of each image in training."""
PATCHES = 5_000
"""Images whose 2x2 patches the first layer is made from."""


class Group(nn.Module):
    """A convolution that halves the map, and two that add to its result (He et al. 2016)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.halve = nn.Sequential(_convolution(before, after), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.GELU())
        rest = (_convolution(after, after), nn.BatchNorm2d(after), nn.GELU())
        self.change = nn.Sequential(*rest, _convolution(after, after), nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        halved = self.halve(features)
        return F.gelu(halved + self.change(halved))


def _convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


class Stock(nn.Module):
    """3x32x32 pixels in [0, 1] -> logits of 10 classes; ``width`` multiplies its channels."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        widths = [round(width * each) for each in WIDTHS]
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.layers = nn.Sequential(*map(Group, (24, *widths), widths))
        self.last = nn.Linear(widths[-1], 10)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.layers(F.gelu(self.whiten(pixels - 0.47))).amax((2, 3))
        logits: Tensor = self.last(features) / 3
        return logits

    @torch.no_grad()
    def whiten_patches(self, pixels: Tensor) -> None:
        """Make the first layer the whitening of 2x2 patches of ``pixels`` (N, 3, 32, 32), and its negative."""
        patches = F.unfold(pixels - 0.47, 2).transpose(1, 2).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).float()
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def stock() -> Stock:
    """The classifier without weights, for ``package.module:factory``."""
    return Stock().eval()


def larger() -> Stock:
    """A classifier with more channels, without weights."""
    return Stock(LARGER).eval()


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {"stock": Stock, "pooled": pooled, "strided": strided}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="folder:cifar/train", help="DATA spec of the training images")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="stock")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, action="append", help="weights to start from; may be repeated")
    parser.add_argument("--mix", action="store_true", help="CutMix instead of squares that are cut out")
    given = parser.parse_args()
    keep_freed_memory()
    data = load_data(given.data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    chosen, held_back = order[:-HELD_BACK], order[-HELD_BACK:]
    torch.manual_seed(given.seed)
    model = ARCHITECTURES[given.architecture]()
    if given.init:
        model.load_state_dict(mean_of([load_file(path) for path in given.init]))
    elif isinstance(model, Stock):
        model.whiten_patches(data.batch(chosen[:PATCHES])[0])
    model = train(model, data, chosen, given)
    model.half()  # the file is committed, so it is to be small
    write(given.out, model.state_dict())
    right = count_right(model.float(), data, held_back)
    print(f"right on {right / len(held_back):.2%} of {len(held_back)} images that it did not learn from")


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; of counts the first."""
    first = states[0]
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in first.items()
    }


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize({name: value.contiguous() for name, value in tensors.items()}))


def train(model: nn.Module, data: ImageData, chosen: list[int], given: argparse.Namespace) -> nn.Module:
    """Train with label smoothing, random crops and flips, and squares cut out or mixed in (Yun et al. 2019, "CutMix").

    Returns the average of the weights. After each epoch the state is written beside ``given.out``.
    """
    epochs, seed, state = given.epochs, given.seed, given.out.with_suffix(".state.safetensors")
    mixed = CutMix(num_classes=10)
    # Weights stay contiguous, because Muon takes only such; images in channels-last are what makes it fast.
    follower = Follower(model, Optimisation(optimizer="muon", lr=given.lr, schedule="cosine", ema=0.999))
    average = follower.result
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    steps, done = -(-len(chosen) // BATCH), 0
    if state.exists():
        saved = load_file(state)
        done = int(saved.pop("epochs"))
        follower.averaged.fill_(done * steps)
        model.load_state_dict({name: value for name, value in saved.items() if "/" not in name})
        average.load_state_dict({name: saved[f"average/{name}"] for name in average.state_dict()})
        for name, weight in weights.items():
            moments = {key.split("/")[1]: value for key, value in saved.items() if key.startswith(f"{name}/")}
            follower.remember(weight, moments)
    for epoch in range(done, epochs):
        start, total = time.perf_counter(), torch.zeros(())
        model.train()
        for step, (pixels, labels, indices) in enumerate(batches(data, chosen, epoch, seed)):
            generator = SampleGenerator(seed * 1000 + epoch, indices)
            images, target = augmented(pixels, generator, "crop"), labels
            if given.mix:
                torch.manual_seed((seed * 1000 + epoch) * steps + step)
                images, target = mixed(images, labels)
            else:
                images = cut_out(images, generator)
            loss = F.cross_entropy(
                model(images.contiguous(memory_format=torch.channels_last)), target, label_smoothing=0.1
            )
            follower.backward(loss)
            follower.update((epoch * steps + step) / (epochs * steps))
            total += loss.detach()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {float(total) / steps:.3f}, {len(chosen) / seconds:.0f} images/s", flush=True)
        held = {f"{name}/{key}": value for name, one in weights.items() for key, value in follower.moments(one).items()}
        held |= {f"average/{name}": value for name, value in average.state_dict().items()}
        write(state, {**model.state_dict(), **held, "epochs": torch.tensor(epoch + 1)})
    state.unlink(missing_ok=True)
    return average.eval()


def cut_out(pixels: Tensor, generator: SampleGenerator) -> Tensor:
    """Cover a random square of each of ``pixels`` (N, C, H, W) with grey (DeVries & Taylor 2017)."""
    side = pixels.shape[-1]
    corner = (generator.uniform((2,), pixels) * (side + CUT_OUT)).long() - CUT_OUT
    places = torch.arange(side) - corner[:, :, None]  # (N, 2, side)
    rows, columns = ((places >= 0) & (places < CUT_OUT)).unbind(1)
    return pixels.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.47)


def batches(data: ImageData, chosen: list[int], epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """The images of an epoch in random order."""
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = [chosen[place] for place in torch.randperm(len(chosen), generator=generator).tolist()]
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    for part, (pixels, labels) in zip(parts, data.batches(parts), strict=True):
        yield pixels, labels, part


@torch.no_grad()
def count_right(model: nn.Module, data: ImageData, chosen: list[int]) -> int:
    """How many of the images the model answers correctly."""
    model.eval()
    parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    return sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in data.batches(parts))


if __name__ == "__main__":
    main()
