"""Guards as folders in the layout of Hugging Face."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import purifier
from nets import trained
from onnx_models import linear
from purifier.errors import ConfigError
from purifier.onnx.runtime import CPU

OPTIONS: dict[str, Any] = {"score": True, "on_reject": "flag", "preprocessing": {"mean": [0.3], "std": [0.2]}}


@pytest.fixture
def images() -> torch.Tensor:
    return purifier.load_data("demo:20").batch(range(20))[0]


@pytest.fixture
def calibrated() -> purifier.Purifier:
    filter = purifier.load("demo-plain")
    purifier.calibrate(filter, "demo:100", fpr=0.2)
    return filter


def test_a_module_comes_back_with_its_options(
    images: torch.Tensor, calibrated: purifier.Purifier, tmp_path: Path
) -> None:
    guarded = purifier.guard(trained("net"), calibrated, **OPTIONS)
    folder = guarded.save_pretrained(tmp_path / "guard")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = purifier.GuardedModule.from_pretrained(folder, classifier=trained("net"))
    given = (images - 0.3) / 0.2
    for found, wanted in zip(again(given), guarded(given), strict=True):
        assert torch.equal(found, wanted)
    assert purifier.load(folder / "model.safetensors").config == calibrated.config
    silent = purifier.GuardedModule.from_pretrained(
        str(folder), classifier=trained("net"), score=False, on_reject="ignore"
    )
    assert torch.equal(silent(given), guarded(given)[0])


def test_the_classifier_may_be_a_spec(images: torch.Tensor, tmp_path: Path) -> None:
    guarded = purifier.guard("demo", "demo-plain")
    folder = guarded.save_pretrained(tmp_path / "guard")
    again = purifier.GuardedModule.from_pretrained(folder, classifier="demo")
    assert torch.equal(again(images), guarded(images))
    for wrong, got in ((linear(), "ModelProto"), (5, "int")):
        with pytest.raises(ConfigError, match=f"expected a torch module, or a MODEL spec of one, got {got}"):
            purifier.GuardedModule.from_pretrained(folder, classifier=wrong)


def test_a_session_comes_back(tmp_path: Path) -> None:
    session = purifier.guard(linear(), "blur:sigma=2", image_shape=(3, 8, 8), providers=[CPU], score=True)
    folder = session.save_pretrained(tmp_path)
    again = purifier.GuardedSession.from_pretrained(folder, classifier=linear(), image_shape=(3, 8, 8), providers=[CPU])
    pixels = torch.rand(3, 3, 8, 8)
    for found, wanted in zip(again(pixels), session(pixels), strict=True):
        np.testing.assert_array_equal(found, wanted)


class HasItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = trained("net")

    def forward(self, *, photo: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(photo)
        return logits

    def save_pretrained(self, folder: Path) -> None:
        raise AssertionError("the classifier's own method would save it without the purifier")


def test_the_guards_methods_win_and_inputs_by_keyword_stay(images: torch.Tensor, tmp_path: Path) -> None:
    guarded = purifier.guard(HasItsOwn(), "demo-plain", input="photo")
    again = purifier.GuardedModule.from_pretrained(guarded.save_pretrained(tmp_path), classifier=HasItsOwn())
    assert torch.equal(again(photo=images), guarded(photo=images))


def test_the_card_has_the_figures_of_the_audit(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    report = purifier.audit(guarded, "demo:20", attacks=["pgd:steps=3"], probes=6)
    card = (guarded.save_pretrained(tmp_path, report=report) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: purifier") and "from_pretrained" in card
    clean = next(row.result for row in report.rows if row.model == "guarded" and row.threat is None)
    assert clean is not None and f"| clean |  | guarded | {clean.share:.1%} [" in card
    assert (
        f"| {report.worst_case[0].result.share:.1%} [" in card or f"{report.worst_case[0].result.share:.1%} [" in card
    )
    assert all(flag.name in card for flag in report.flags)
    assert "not audited" in (guarded.save_pretrained(tmp_path / "plain") / "README.md").read_text()


def test_a_repository_is_downloaded_by_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    guarded = purifier.guard(trained("net"), "demo-plain")
    folder, asked = guarded.save_pretrained(tmp_path / "there"), []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    purifier.GuardedModule.from_pretrained("someone/guard", classifier=trained("net"), revision="v1")
    assert asked == [("someone/guard", "v1")]


def changed(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "expected the config.json of a guard .*FileNotFoundError"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected the config.json of a guard"),
        (lambda folder: changed(folder, format=9), "format 9, this version reads 1"),
        (lambda folder: changed(folder, guard={"preprocessing": {"mean": "?"}}), "config.json.*mean must be a list"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "model.safetensors"),
    ],
)
def test_folders_that_are_not_a_guards_are_errors(damage: Any, says: str, tmp_path: Path) -> None:
    folder = purifier.guard(trained("net"), "demo-plain").save_pretrained(tmp_path / "guard")
    damage(folder)
    with pytest.raises(purifier.PurifierError, match=says):
        purifier.GuardedModule.from_pretrained(folder, classifier=trained("net"))


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    guarded = purifier.guard(trained("net"), "demo-plain")
    with pytest.raises(ConfigError, match=r"expected the package huggingface_hub.*adversarial-purifier\[hub\]"):
        guarded.save_pretrained(tmp_path / "guard")
    assert not (tmp_path / "guard").exists()
