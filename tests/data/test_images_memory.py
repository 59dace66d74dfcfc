"""Image folders stay on the disk: memory does not grow with their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 700
PROGRAM = """
import resource, sys
import purifier
import torch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
data = purifier.load_data("demo:1")
data.batch([0])
torch.zeros(1)
before = peak()
data = purifier.load_data(f"folder:{sys.argv[1]}", resize=64, crop=64)
for start in range(0, len(data), 10):
    data.batch(range(start, min(start + 10, len(data))))
print(len(data), peak() - before)
"""


@pytest.mark.integration
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((SIDE // 4,) * 2).resize((SIDE,) * 2).save(tmp_path / "0.jpg")
    for place in range(1, 300):
        (tmp_path / f"{place}.jpg").hardlink_to(tmp_path / "0.jpg")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    count, megabytes = map(int, ran.stdout.split())
    assert count == 300
    assert megabytes < 150, "all of them decoded are 420 MB"
