"""The batch size that fits into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nets import trained
from purifier.contracts.purifier import Purifier
from purifier.errors import ConfigError
from purifier.training import fitting
from purifier.training.fitting import Need
from purifier.training.loop import train
from purifier.training.progress import Progress
from training_helpers import same

MB = 10**6


def run(out: Path, **options: Any) -> Purifier:
    return train(
        "vae",
        "demo:200",
        out,
        **{"config": {"channels": 2, "latent": 4}, "epochs": 1, "overwrite": True, **options},
    )


def chosen(trained: Purifier) -> int:
    return int(trained.provenance["training"]["batch_size"])


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory there is, and that of a step."""

    def have(room: float | None, need: Need | None) -> None:
        monkeypatch.setattr(fitting, "available", lambda _: room)
        monkeypatch.setattr(fitting, "measured", lambda *_: need)

    return have


@pytest.mark.parametrize(
    ("room", "expected"),
    # 80 percent of the room, less 20 MB, at 1 MB per image
    [(1000, 128), (186, 128), (184, 64), (106, 64), (104, 32), (28, 2)],
)
def test_the_largest_batch_that_fits_is_taken_and_told(room: float, expected: int, memory: Any, tmp_path: Path) -> None:
    memory(room * MB, Need(20 * MB, MB))
    seen: list[Progress] = []
    assert chosen(run(tmp_path / "a.safetensors", progress=seen.append)) == expected
    told = [now.warning for now in seen if now.warning.startswith("batches of")]
    assert told == ([] if expected == 128 else [f"batches of {expected} images, which is what fits into memory"])


def test_what_does_not_fit_is_refused_with_advice(memory: Any, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    memory(104 * MB, Need(20 * MB, MB))
    with pytest.raises(
        ConfigError, match=r"a step with 100 images takes about 0.12 GB, but .* 0.1 GB: lower the batch size to 64"
    ):
        run(out, batch_size=100)
    assert chosen(run(out, batch_size=80)) == 80
    memory(21 * MB, Need(20 * MB, MB))
    with pytest.raises(ConfigError, match=r"a step with 2 images takes .*: choose a smaller purifier \(--size tiny\)"):
        run(out)


@pytest.mark.parametrize(("room", "need"), [(None, Need(0, MB)), (1, None)])
def test_where_nothing_is_known_nothing_is_refused(room: Any, need: Any, memory: Any, tmp_path: Path) -> None:
    memory(room, need)
    assert chosen(run(tmp_path / "a.safetensors")) == 128


class Stopped(Exception):
    pass


def test_a_resumed_run_keeps_its_batch_size_and_precision(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"
    features = {"amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    memory(104 * MB, Need(20 * MB, MB))
    options = {"precision": "auto", "epochs": 2}
    straight = run(out, **options)
    for path in tmp_path.iterdir():
        path.unlink()

    def second(now: Progress) -> None:
        if now.epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(out, progress=second, **options)
    memory(1000 * MB, Need(20 * MB, MB))
    features["amx_bf16"] = False
    resumed = run(out, resume=True, overwrite=False, **options)
    assert chosen(resumed) == chosen(straight) == 32
    assert resumed.provenance["training"]["precision"] == "bfloat16" and same(resumed, straight)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "robust:steps=3", "classifier": trained("net")},
        {"recipe": "denoise", "classifier": trained("net")},
        {"recipe": "denoise:cached=true,attacks=square", "classifier": trained("net")},
    ],
)
def test_measuring_changes_nothing(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Need | None] = []
    measured = fitting.measured
    monkeypatch.setattr(fitting, "measured", lambda *args: found.append(measured(*args)) or found[-1])
    with_it = run(tmp_path / "a.safetensors", **options)
    monkeypatch.setattr(fitting, "measured", lambda *_: None)
    assert same(with_it, run(tmp_path / "a.safetensors", **options))
    # Input, output, gradient and activations of at least two layers of 2 channels at 28x28
    assert found[0] is not None and 4 * 28 * 28 * 4 < found[0].per_image < MB
