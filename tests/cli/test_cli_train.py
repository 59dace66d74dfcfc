"""``purifier train`` from arguments to files."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from purifier.cli.train import train
from purifier.contracts import checkpoint
from purifier.errors import SpecError, TrainingError

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
