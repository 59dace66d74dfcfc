"""``purifier train`` from arguments to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from purifier.cli.train import train
from purifier.cli.training_progress import parts_of
from purifier.contracts import checkpoint
from purifier.errors import SpecError, TrainingError
from purifier.training.progress import Progress

app = typer.Typer()
app.command()(train)


def test_train(tmp_path: Path) -> None:
    out = tmp_path / "vae.safetensors"
    result = CliRunner().invoke(
        app,
        f"vae --data fashion-mnist:train:64 --out {out} --epochs 2 --batch-size 16 --lr 0.002 --seed 7 "
        "--set channels=2 --set latent=3",
    )
    assert result.exit_code == 0, result.output
    assert f"checkpoint {out}" in result.output
    assert "epoch 2/2" in result.output
    assert "vae.log.jsonl" in result.output and "reconstruction" in result.output
    made = checkpoint.load(out)
    assert (made.config.channels, made.config.latent, made.config.image_shape) == (2, 3, (1, 28, 28))
    assert (made.provenance["seed"], made.provenance["metrics"]["epochs"]) == (7, 2)


def test_a_size_and_a_checkpoint_to_begin_with(command, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    options = "--data demo:8 --epochs 1"
    code, _, said = command(*f"train vae {options} --size tiny --set channels=2 --out {first}".split())
    assert code == 0, said
    code, _, said = command(*f"train vae {options} --init {first} --out {second}".split())
    assert code == 0, said
    one, other = checkpoint.load(first), checkpoint.load(second)
    assert one.config == other.config and (other.config.channels, other.config.depth, other.config.spatial) == (
        2,
        1,
        True,
    )
    assert other.provenance["training"]["init"] == one.provenance["sha256"]
    for wrong, message in (
        ("--size huge", "expected one of tiny, small, base"),
        ("--max-weights 9", "at most 9: lower"),
    ):
        code, _, said = command(*f"train vae {options} {wrong} --out {tmp_path / 'third.safetensors'}".split())
        assert code == 2 and message in said


def test_progress_without_a_terminal_is_a_line_now_and_then(command, tmp_path: Path) -> None:
    out = tmp_path / "vae.safetensors"
    line = f"train vae --data demo:64 --out {out} --epochs 3 --batch-size 16 --set channels=2 --set latent=3"
    code, shown, said = command(*line.split())
    assert code == 0
    opening, first, *_, last = said.splitlines()
    assert opening == "epoch 1/3, 0 of 192 images"
    assert re.match(r"epoch 1/3, 16 of 192 images, loss \d+\.?\d*, [\d.]+ images/s", first)
    assert re.match(r"epoch 3/3, 192 of 192 images, loss \d+\.?\d*, [\d.]+ images/s$", last)
    assert len(said.splitlines()) <= 5 and f"checkpoint {out}" in shown and "epoch" not in shown.split("epochs")[0]


@pytest.mark.parametrize(
    ("now", "parts"),
    [
        (Progress(2, 9, 150, 900, 0.5, 1234.4, 75.2), ["epoch 2/9", "loss 0.5", "1234 images/s", "about 1:15 left"]),
        (Progress(9, 9, 900, 900, 12.34567, 2.5, 0.3), ["epoch 9/9", "loss 12.35", "2.5 images/s"]),
        (
            Progress(2, 9, 200, 900, 0.5, 9.96, 7300, "checking", 32, 250),
            ["epoch 2/9, checked 32 of 250 images", "loss 0.5", "9.96 images/s", "about 2:01:40 left"],
        ),
        (
            Progress(1, 9, 0, 900, 0.0, 0.0, 0.0, "labelling", 32, 100),
            ["labelled 32 of 100 images with the classifier's answers"],
        ),
    ],
)
def test_progress_in_words(now: Progress, parts: list[str]) -> None:
    assert parts_of(now) == parts


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ("--resume", TrainingError, "nothing to resume"),
        ("--set channels", SpecError, "cannot read 'channels'"),
    ],
)
def test_errors_reach_main(tmp_path: Path, options: str, error: type[Exception], says: str) -> None:
    result = CliRunner().invoke(app, f"vae --data fashion-mnist:train:64 --out {tmp_path / 'p.safetensors'} {options}")
    assert isinstance(result.exception, error)
    assert says in str(result.exception)


@pytest.mark.parametrize(("plugin", "says"), [("vae:latent=8", "vae --set latent=8"), ("vae:", "vae --set KEY=VALUE")])
def test_plugin_options_belong_in_set(tmp_path: Path, plugin: str, says: str) -> None:
    result = CliRunner().invoke(app, f"{plugin} --data demo --out {tmp_path / 'p.safetensors'} --set channels=2")
    assert isinstance(result.exception, SpecError)
    assert str(result.exception).endswith(f"the plugin's options go in --set: {says}")
    assert list(tmp_path.iterdir()) == []


def test_missing_options_are_errors() -> None:
    result = CliRunner().invoke(app, "vae --data demo")
    assert result.exit_code == 2
    assert "--out" in result.output
