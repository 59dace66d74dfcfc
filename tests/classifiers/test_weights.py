"""Weights as training scripts leave them: wrapped, prefixed, with other things beside them, or not fitting."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from purifier.classifiers.weights import load_weights, read_weights, state_for
from purifier.errors import CheckpointError, ClassifierError


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def load(module: nn.Module, path: Path) -> None:
    load_weights(module, state_for(module, read_weights(path), path), path)


def check_loaded(path: Path, trained: nn.Module, module: nn.Module | None = None) -> None:
    module = module or net()
    load(module, path)
    for found, wanted in zip(module.state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(found, wanted)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS = {
    "plain": lambda model: model.state_dict(),
    "DataParallel": lambda model: nn.DataParallel(model).state_dict(),
    "compiled": lambda model: torch.compile(model).state_dict(),
    "compiled DataParallel": lambda model: nn.DataParallel(torch.compile(model)).state_dict(),
    "timm": lambda model: {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": model.state_dict(),
        "args": argparse.Namespace(lr=0.1),
    },
    "torchvision": lambda model: {
        "model": model.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    },
    "tutorial": lambda model: {"epoch": 1, "model_state_dict": model.state_dict(), "loss": 0.5},
    "Lightning": lambda model: {"state_dict": prefixed("model.", model.state_dict()), "hyper_parameters": {"lr": 0.1}},
    "nested": lambda model: {"model": {"state_dict": prefixed("module.", model.state_dict())}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_state_dicts_are_unwrapped(form: str, suffix: str, tmp_path: Path) -> None:
    trained = net()
    torch.save(FORMS[form](trained), tmp_path / f"w{suffix}")
    check_loaded(tmp_path / f"w{suffix}", trained)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_safetensors_with_prefixes(prefix: str, tmp_path: Path) -> None:
    trained = net()
    save_file(prefixed(prefix, trained.state_dict()), tmp_path / "w.safetensors")
    check_loaded(tmp_path / "w.safetensors", trained)


def test_a_layer_that_was_compiled(tmp_path: Path) -> None:
    trained = net()
    state = trained.state_dict()
    torch.save({name.replace("0.", "0._orig_mod."): value for name, value in state.items()}, tmp_path / "w.pt")
    check_loaded(tmp_path / "w.pt", trained)


@pytest.mark.parametrize("name", ["module", "model", "model_state_dict"])
def test_a_prefix_that_is_the_models_own_stays(name: str, tmp_path: Path) -> None:
    trained, module = nn.ModuleDict({name: net()}), nn.ModuleDict({name: net()})
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    check_loaded(tmp_path / "w.pt", trained, module)


def test_weights_of_half_precision_become_the_models(tmp_path: Path) -> None:
    trained = net()
    torch.save(trained.half().state_dict(), tmp_path / "w.pt")
    module = net()
    load(module, tmp_path / "w.pt")
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}
    torch.testing.assert_close(module[0].weight, trained[0].weight.float(), rtol=0, atol=0)


def test_layers_that_ask_for_their_version(tmp_path: Path) -> None:
    """MNASNet refuses a state dict that does not tell its version, as safetensors files cannot."""
    trained, module = (torchvision.models.mnasnet0_5(num_classes=2) for _ in range(2))
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    check_loaded(tmp_path / "w.safetensors", trained, module)


def test_batch_norm_from_before_it_counted_batches(tmp_path: Path) -> None:
    trained = nn.BatchNorm1d(3)
    trained.running_mean = torch.rand(3)
    state = trained.state_dict()
    save_file(
        {name: value for name, value in state.items() if name != "num_batches_tracked"}, tmp_path / "w.safetensors"
    )
    check_loaded(tmp_path / "w.safetensors", trained, nn.BatchNorm1d(3))


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(8))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(3)}, r"missing: 2.weight, 2.bias; give"),
        (
            {**net().state_dict(), "head.weight": torch.zeros(1)},
            r"does not fit Sequential: unexpected: head.weight; give",
        ),
        ({**net().state_dict(), "2.bias": torch.zeros(5)}, r"of another shape: 2.bias \(5, not 2\); give"),
        ({"module.0.weight": torch.zeros(3, 4), "2.bias": torch.zeros(2)}, r"missing: .*unexpected: module.0.weight"),
    ],
)
def test_keys_that_do_not_fit_are_named(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ClassifierError, match=message):
        load(net(), tmp_path / "w.pt")


def test_counters_of_batch_norms_are_named_last(tmp_path: Path) -> None:
    torch.save({"0.running_mean": torch.zeros(3), "0.running_var": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(ClassifierError, match=r"missing: 1.weight, 1.bias, 0.num_batches_tracked; give"):
        load(nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)), tmp_path / "w.pt")


@pytest.mark.parametrize("key", [3, ("0.weight",)])
def test_keys_that_are_no_names_are_errors(key: Any, tmp_path: Path) -> None:
    torch.save({**net().state_dict(), key: torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ClassifierError, match=r"from names to tensors, got the key .*; save model.state_dict\(\)"):
        load(net(), tmp_path / "weights.pt")


def test_the_first_few_of_many_keys_are_named(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pt")
    named = ", ".join(f"layers.{place}.weight" for place in range(5))
    with pytest.raises(ClassifierError, match=f"missing: {named} and 3 more; unexpected: other; give"):
        load(Many(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"epoch": 3, "optimizer": {"lr": 1.0}},
            r"w.pt: expected a state dict.*'state_dict', 'model'.*got the keys epoch, optimizer",
        ),
        ({"state_dict": {"epoch": 3}}, r"w.pt\['state_dict'\]: expected a state dict.*got the keys epoch"),
        ({}, "got the keys none"),
        (torch.zeros(3), "expected a state dict, a mapping from names to tensors, got Tensor"),
        ([1, 2], "got list"),
    ],
)
def test_files_without_a_state_dict_are_errors(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ClassifierError, match=message):
        load(net(), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.safetensors"])
def test_nothing_is_unpickled(name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    torch.save({"state_dict": net().state_dict(), "args": argparse.Namespace(lr=Bomb())}, tmp_path / name)
    with pytest.raises((ClassifierError, CheckpointError), match="it holds more than tensors|is a pickle"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises((ClassifierError, CheckpointError)):
        read_weights(tmp_path / name)
    assert not (tmp_path / "harmed").exists()
