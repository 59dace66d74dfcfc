"""A service's life in minutes: many calls from many threads with bad images among them, and what they get.

``python tests/benchmarks/soak.py [--calls 100000] [--save]`` calls a guarded module and a guarded session, each with
``on_bad_pixels="reject"`` and with ``"raise"``. Every answer is compared with that of one thread and a guard that was
given no bad image. It prints a Markdown table, and exits 1 if an answer is wrong or memory grew by more than a bound.
``--save`` also writes the rows to ``results/measured/soak.json``, from which ``benchmarks_page.py`` takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from figures import MEASURED, measured_table
from torch import Tensor, nn

import purifier
from purifier import ImageData
from purifier.errors import PixelError

THREADS = 8
SHARE = 0.01
"""Of bad images."""
BAD = (float("nan"), float("inf"), 1.5, -0.2)
BATCHES = range(1, 9)
SHAPE = (3, 32, 32)
REQUESTS = 200
TOLERANCE = 1e-5
"""Of logits of about 1; what the bad images of a batch are must not show in the others' answers."""
WARM_UP = 0.1
"""Share of the calls after which memory is measured first."""
GROWTH_MB = 32.0
GUARDS = ("module", "session")
WAYS = ("reject", "raise")
Ask = Callable[[Tensor], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="of each guard, half of them in each way")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, wrong = [], False
    for kind in GUARDS:
        for way in WAYS:
            found = soaked(kind, way, given.calls // len(WAYS))
            rows.append(found.row(kind, way))
            wrong = wrong or found.wrong > 0 or found.grown > GROWTH_MB
            print(*rows[-1].values(), *found.examples, sep=" | ", file=sys.stderr, flush=True)
    print(measured_table(rows))
    if given.save:
        save(rows)
    if wrong:
        raise SystemExit(f"answers are wrong, or memory grew by more than {GROWTH_MB:g} MB")


@dataclass
class Found:
    """What the calls got."""

    counts: Counter[str] = field(default_factory=Counter)
    difference: float = 0.0
    """The largest between logits and those expected."""
    examples: list[str] = field(default_factory=list)
    warm: float = 0.0
    end: float = 0.0
    """Resident memory in MB after the warm-up and at the end."""
    seconds: float = 0.0

    @property
    def wrong(self) -> int:
        return self.counts["wrong"]

    @property
    def grown(self) -> float:
        return self.end - self.warm

    def row(self, kind: str, way: str) -> dict[str, Any]:
        return {
            "guard": kind,
            "`on_bad_pixels`": f"`{way}`",
            "calls": self.counts["calls"],
            "images": self.counts["images"],
            "bad images": self.counts["bad images"],
            "calls with a bad image": self.counts["bad calls"],
            "wrong answers": self.wrong,
            "largest difference": f"{self.difference:.1g}",
            "MB after 10% of the calls": f"{self.warm:.0f}",
            "MB at the end": f"{self.end:.0f}",
            "calls per second": round(self.counts["calls"] / self.seconds),
        }


def soaked(kind: str, way: str, calls: int) -> Found:
    """Call a guard from all threads; ``kind`` is one of ``GUARDS``, ``way`` one of ``WAYS``."""
    generator = torch.Generator().manual_seed(0)
    requests = [torch.rand((BATCHES[at % len(BATCHES)], *SHAPE), generator=generator) for at in range(REQUESTS)]
    ask = guarded(kind, way)
    expected = [ask(request) for request in requests]
    if not any(rejected.any() for _, rejected in expected) or all(rejected.all() for _, rejected in expected):
        raise AssertionError("expected some good images to be rejected, and some not")
    found, lock, began = Found(), threading.Lock(), time.perf_counter()

    def work(thread: int, count: int) -> None:
        own, chance = Found(), random.Random(1000 * thread + count)
        for _ in range(count):
            at = chance.randrange(REQUESTS)
            call(ask, way, requests[at], expected[at], chance, own)
        with lock:
            found.counts += own.counts
            found.difference = max(found.difference, own.difference)
            found.examples = (found.examples + own.examples)[:3]

    with ThreadPoolExecutor(THREADS) as pool:
        first = max(1, int(calls * WARM_UP) // THREADS)
        list(pool.map(lambda thread: work(thread, first), range(THREADS)))
        found.warm = resident()
        rest = [(calls - first * THREADS + thread) // THREADS for thread in range(THREADS)]
        list(pool.map(work, range(THREADS), rest))
        found.end = resident()
    found.seconds = time.perf_counter() - began
    return found


def guarded(kind: str, way: str) -> Ask:
    """A new guard, and how it is asked for logits and which images are rejected."""
    torch.manual_seed(0)
    chosen = purifier.load(f"vae:image_shape={'x'.join(map(str, SHAPE))},channels=8,depth=2,latent=8,spatial=true")
    pictures = torch.rand((200, *SHAPE), generator=torch.Generator().manual_seed(1))
    purifier.calibrate(chosen, ImageData("random", pictures, None, ()), fpr=0.1)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()
    options: dict[str, Any] = {"on_reject": "flag", "on_bad_pixels": way}
    if kind == "module":
        module = purifier.guard(net, chosen, **options)

        def of_module(images: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
            with torch.no_grad():
                logits, rejected = module(images)
            return logits.numpy(), rejected.numpy()

        return of_module
    session = purifier.guard(as_onnx(net), chosen, sess_options=one_thread(), **options)
    return lambda images: tuple(session.run(["logits", "purifier_rejected"], {"x": images.numpy()}))


def as_onnx(net: nn.Module) -> Any:
    free = ({0: torch.export.Dim.DYNAMIC},)
    made = torch.onnx.export(
        net,
        (torch.rand(2, *SHAPE),),
        dynamo=True,
        dynamic_shapes=free,
        input_names=["x"],
        output_names=["logits"],
        verbose=False,
    )
    assert made is not None
    return made.model_proto


def one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def call(ask: Ask, way: str, images: Tensor, expected: Any, chance: random.Random, found: Found) -> None:
    """One call, in which each image is bad with the probability ``SHARE``, and what is wrong with its answer."""
    bad = [at for at in range(len(images)) if chance.random() < SHARE]
    if bad:
        images = images.clone()
        for at in bad:
            images[at, chance.randrange(3), chance.randrange(32), chance.randrange(32)] = chance.choice(BAD)
    found.counts.update({"calls": 1, "images": len(images), "bad images": len(bad), "bad calls": bool(bad)})
    try:
        answer = ask(images)
    except PixelError as error:
        wrong = "" if way == "raise" and bad and named(str(error)) == bad else f"raised for {bad}: {error}"
    else:
        wrong = "" if not (bad and way == "raise") else f"no error for {bad}"
        wrong = wrong or compare(answer, expected, bad, found)
    if wrong:
        found.counts["wrong"] += 1
        found.examples = [*found.examples, wrong][:3]


def named(message: str) -> list[int]:
    """The positions of images in an error's message."""
    listed = re.findall(r"images? (\d[\d, and]*)(?= of |, |$)", message.partition(" (counted")[0])
    return sorted(int(number) for text in listed for number in re.findall(r"\d+", text))


def compare(answer: Any, expected: Any, bad: list[int], found: Found) -> str:
    """What is wrong with an answer, or nothing: bad images have none, the others what they have without them."""
    (logits, rejected), (wanted, flagged) = answer, expected
    good = [at for at in range(len(wanted)) if at not in bad]
    if logits.shape != wanted.shape or rejected.shape != flagged.shape:
        return f"shapes {logits.shape}, {rejected.shape}"
    if not np.isnan(logits[bad]).all() or not rejected[bad].all():
        return f"bad images {bad} have answers {logits[bad]}, rejected {rejected[bad]}"
    if not np.array_equal(rejected[good], flagged[good]):
        return f"rejected {rejected[good]}, expected {flagged[good]}"
    difference = float(np.abs(logits[good] - wanted[good]).max(initial=0))
    if not difference <= TOLERANCE:
        return f"logits differ by {difference}"
    found.difference = max(found.difference, difference)
    return ""


def resident() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def save(rows: list[dict[str, Any]]) -> None:
    source = {
        "command": ["python tests/benchmarks/soak.py --save"],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "date": date.today().isoformat(),
        "note": f"{THREADS} threads; 1 to 8 images of 3x32x32 per call, {SHARE:.0%} of them bad.",
    }
    text = json.dumps({"source": source, "tables": {"table": rows}}, indent=1) + "\n"
    (MEASURED / "soak.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
