"""How much faster a training step is with our Muon and with channels-last images, in one run.

``OMP_NUM_THREADS=1 python tests/benchmarks/step_speed.py [--count 64]`` prints medians in ms per image and ratios, for
the recipe ``robust`` with its settings and its purifier, in front of the shipped classifier.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from small_vae import TRAINING

from guard_speed import measure
from purifier.assets.classifier import demo_classifier
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.torch_tools.channels_last import channels_last, fed_channels_last
from purifier.torch_tools.freezing import freeze
from purifier.torch_tools.memory import keep_freed_memory
from purifier.torch_tools.torchrun import Processes
from purifier.training.optimisation import Follower
from purifier.training.recipe import Batch, learned_of
from purifier.training.robust import Robust


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="images per step")
    given = parser.parse_args()
    keep_freed_memory()
    indices = range(given.count)
    pixels, labels = load_data(f"fashion-mnist:train:{given.count}").batch(indices)
    classifier = TorchPixelClassifier(demo_classifier(), Preprocessing())
    batch = Batch(
        pixels=pixels,
        labels=labels,
        generator=SampleGenerator(0, indices),
        lasting=SampleGenerator(1, indices),
        indices=indices,
        classifier=classifier,
        done=0.5,
    )
    with ExitStack() as stack:
        stack.enter_context(freeze(classifier))
        stack.enter_context(channels_last(classifier, lambda images: [classifier(images)], pixels[:2]))
        ways = {}
        for name in ("before", "muon", "both"):
            purifier, step = stepping(batch, torchs=name == "before")
            if name == "both":
                used = stack.enter_context(fed_channels_last(purifier, partial(learned_of, labels[:2]), pixels[:2]))
                assert used
            ways[name] = step
        before, muon, both = (seconds * 1e3 / given.count for seconds in measure(ways, "cpu").values())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.count} images per step: torch's Muon "
        f"{before:.2f} ms per image, own {muon:.2f} ({muon / before:.2f}), channels-last too {both:.2f} "
        f"({both / before:.2f}, or {both / muon:.2f} of own)"
    )


def stepping(batch: Batch, *, torchs: bool) -> tuple[Purifier, Callable[[], None]]:
    """A purifier, and its next step; with torch's Muon or ours."""
    torch.manual_seed(0)
    kind = purifiers.get("vae")
    purifier = kind(kind.Config(image_shape=(1, 28, 28), **TRAINING["config"])).train()
    recipe = Robust(eps=0.1)
    follower = Follower(purifier, recipe.suggested.on(torch.device("cpu"), None, lambda: False, Processes()))
    if torchs:
        weights = follower.matrices.values()
        follower.optimizers[-1] = torch.optim.Muon(weights, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return purifier, partial(advance, recipe, purifier, follower, batch)


def advance(recipe: Robust, purifier: Purifier, follower: Follower, batch: Batch) -> None:
    with follower.settings.autocast(batch.pixels.device):
        terms = recipe.step(purifier, batch)
    follower.backward(torch.stack(list(terms.values())).sum())
    follower.update(batch.done)


if __name__ == "__main__":
    main()
