"""The presets of latent optimisation on one decoder, in one run: reconstruction error and time per image.

``python tests/benchmarks/latent_presets.py [--base SPEC] [--data SPEC]`` prints both and the ratios to ``defense-gan``.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import purifier
from purifier.data.loading import load_data
from purifier.seeding import SampleGenerator

BATCH = 50
PRESETS = ("fast", "defense-gan")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo-plain", help="PURIFIER spec of the VAE")
    parser.add_argument("--data", default="demo:200", help="DATA spec")
    given = parser.parse_args()
    data = load_data(given.data)
    ways = {"base alone": given.base} | {preset: f"latent:base={given.base},preset={preset}" for preset in PRESETS}
    loaded = {way: purifier.load(spec) for way, spec in ways.items()}
    errors: dict[str, list[Tensor]] = {way: [] for way in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for chosen in loaded.values():  # warm up
        purify(chosen, data.batch(range(2))[0], range(2))
    for start in range(0, len(data), BATCH):
        indices = range(start, min(start + BATCH, len(data)))
        pixels = data.batch(indices)[0]
        for way, chosen in loaded.items():
            began = time.perf_counter()
            purified = purify(chosen, pixels, indices)
            seconds[way] += time.perf_counter() - began
            errors[way].append((purified - pixels).square().flatten(1).mean(1))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(data)} images of {given.data}")
    slowest = seconds["defense-gan"]
    worst = torch.cat(errors["defense-gan"])
    for way in ways:
        found = torch.cat(errors[way])
        lower = (found <= worst).float().mean()
        print(
            f"{way:12s} squared error per pixel {found.mean():.5f} "
            f"({found.mean() / worst.mean():.2f}x of defense-gan's, "
            f"no higher on {lower:.0%} of images)   {1e3 * seconds[way] / len(data):9.2f} ms per image "
            f"(1/{slowest / seconds[way]:.0f} of defense-gan's)"
        )


def purify(chosen: purifier.Purifier, pixels: Tensor, indices: range) -> Tensor:
    return chosen.purify(pixels, chosen.draw(pixels, SampleGenerator(0, indices)))


if __name__ == "__main__":
    main()
