"""How much memory a computation takes, and how much there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from purifier.torch_tools import memory_use
from purifier.torch_tools.memory_use import available, peak_of

CPU = torch.device("cpu")
SIZE = 4 * 1000


def test_the_peak_counts_what_lives_at_the_same_time() -> None:
    start = torch.ones(1000)

    def chain() -> None:  # two at a time: each input dies after its output
        value = start + 1
        for _ in range(5):
            value = value * 2

    def held() -> None:
        values = [start + number for number in range(6)]
        assert len([value.view(10, 100) for value in values]) == 6  # views are no memory of their own
        start.mul_(1)

    assert (peak_of(chain, CPU), peak_of(held, CPU)) == (2 * SIZE, 6 * SIZE)


def test_what_autograd_keeps_counts() -> None:
    leaf = torch.ones(1000, requires_grad=True)

    def run() -> None:
        value = leaf
        for _ in range(10):
            value = value.sin()  # keeps its input for the gradient
        value.sum().backward()

    assert 10 * SIZE <= peak_of(run, CPU) <= 14 * SIZE


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = available(CPU)
    assert whole is not None and whole > 10**7
    monkeypatch.setattr(memory_use, "CGROUPS", tmp_path)
    line = {1: "4:cpu,memory:/a/b", 2: "0::/a/b"}[version]
    reading = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *args: line if str(self) == "/proc/self/cgroup" else reading(self, *args)
    )
    if version == 1:
        top, limit, usage, cached = tmp_path / "memory", "memory__limit_in_bytes", "memory__usage_in_bytes", "total_"
    else:
        top, limit, usage, cached = tmp_path, "memory__max", "memory__current", ""
    facts = {"memory__stat": f"anon 5\n{cached}inactive_file 100000\n"}
    _group(top / "a", **{limit: "5000000", usage: "4000000\n", **facts})
    _group(top / "a" / "b", **{limit: "max" if version == 2 else str(2**63 - 4096), usage: "1", **facts})
    assert available(CPU) == 1_100_000
