"""How much faster attacks are in channels-last layout: logits and gradients, both layouts in turn, in one run.

``OMP_NUM_THREADS=1 python tests/benchmarks/layout_speed.py [--purifier SPEC] [--count 250]`` prints medians in ms per
batch and ratios, for the shipped classifier alone and behind a purifier.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from guard_speed import measure
from purifier.assets.classifier import demo_classifier
from purifier.attacking.target import Target
from purifier.auditing.preflight import everything_asked
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.checkpoint import load
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.torch_tools.channels_last import channels_last
from purifier.torch_tools.freezing import freeze
from purifier.torch_tools.memory import keep_freed_memory
from purifier.vocabulary import Route


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--purifier", default="demo", help="PURIFIER spec")
    parser.add_argument("--count", type=int, default=250, help="images per batch")
    given = parser.parse_args()
    keep_freed_memory()
    pixels = load_data(f"fashion-mnist:test:{given.count}").batch(range(given.count))[0]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.count} images, {given.purifier}")
    own, last = ((TorchPixelClassifier(demo_classifier(), Preprocessing()), load(given.purifier)) for _ in range(2))
    with (
        freeze(*own, *last),
        channels_last(last[0], lambda images: [last[0](images)], pixels[:2]) as first_used,
        channels_last(last[1], everything_asked(last[1]), pixels[:2]) as second_used,
    ):
        print(f"channels-last: classifier {first_used}, purifier {second_used}")
        routes: dict[Route, str] = {"oblivious": "classifier alone", "exact": "guarded", "bpda": "guarded"}
        for route, what in routes.items():
            targets = [Target(*pair, route, SampleGenerator(0, range(given.count))) for pair in (own, last)]
            if route != "bpda":
                compare(f"{what}, logits", [partial(target.logits, pixels) for target in targets])
            compare(f"{what}, gradient {route}", [partial(target.gradient, pixels, best) for target in targets])


def best(logits: torch.Tensor) -> torch.Tensor:
    return logits.amax(1)


def compare(what: str, calls: list[Callable[[], object]]) -> None:
    own, last = measure(dict(zip(("own", "last"), calls, strict=True)), "cpu").values()
    print(f"{what:32s} own {own * 1e3:8.1f} ms   channels-last {last * 1e3:8.1f} ms   last / own {last / own:.2f}")


if __name__ == "__main__":
    main()
