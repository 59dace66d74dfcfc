"""The card beside an exported file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import purifier
from onnx_models import FLOAT, linear, model_of
from purifier.exporters._saving import digest
from purifier.guards.exporting import export
from purifier.guards.guard import guard

CARD = {
    "purifier_card",
    "file",
    "bytes",
    "sha256",
    "external_data",
    "opset",
    "precision",
    "max_error",
    "inputs",
    "outputs",
    "latency",
    "clean",
    "robust",
}


def images(count: int = 24) -> torch.Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def answers(count: int = 24) -> torch.Tensor:
    """The classes that the guard of ``linear`` and ``blur`` gives the images, but for every fourth, which is wrong."""
    logits = guard(linear(), "blur").run(None, {"images": images(count).numpy()})[0]
    classes = torch.from_numpy(logits.argmax(1))
    classes[::4] = (classes[::4] + 1) % 5
    return classes


def test_the_card_says_what_the_file_is(tmp_path: Path) -> None:
    report = export(guard(linear(), "blur"), tmp_path / "guarded.onnx")
    card = json.loads((tmp_path / "guarded.onnx.json").read_text())
    assert card == report.card and card.keys() == CARD
    assert (card["file"], card["bytes"]) == ("guarded.onnx", report.path.stat().st_size)
    assert card["sha256"] == digest(report.path)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    assert card["inputs"] == [{"name": "images", "type": "tensor(float)", "shape": session.get_inputs()[0].shape}]
    assert [value["name"] for value in card["outputs"]] == ["logits"]
    assert (card["opset"], card["precision"], card["external_data"]) == (18, "fp32", None)
    assert card["latency"]["median_ms"] > 0
    assert card["latency"]["threads"] == torch.get_num_threads()
    assert card["clean"] is None and card["robust"] is None


def test_figures_on_data_are_those_of_the_guard_and_of_an_audit_of_the_file(tmp_path: Path) -> None:
    path, data = tmp_path / "guarded.onnx", purifier.ImageData("random", images(), answers())
    card = export(guard(linear(), "blur"), path, data=data, norm="l2", eps=0.5, sample=100).card
    assert card["clean"] == {"images": 24, "agreement": 1.0, "accuracy": 0.75, "guard_accuracy": 0.75}
    report = purifier.audit(path, data, norm="l2", eps=0.5, attacks=["apgd-ce:steps=20"], probes=6)
    clean, attacked = report.rows
    robust = card["robust"]
    assert (robust["clean"], robust["accuracy"]) == (clean.result.share, attacked.result.share)
    assert 0 < robust["accuracy"] < 0.75
    assert (robust["images"], robust["threat"], robust["route"]) == (24, "l2 0.5", "exact")
    assert robust["labels"] == "of the data"
    assert robust["interval"] == list(attacked.result.interval)


def test_without_labels_the_guards_answers_are_right(tmp_path: Path) -> None:
    card = export(guard(linear(), "blur"), tmp_path / "guarded.onnx", data=images(), eps=1e-3, sample=8).card
    assert card["clean"] == {"images": 24, "agreement": 1.0}
    assert (card["robust"]["labels"], card["robust"]["clean"]) == ("the guard's answers", 1.0)
    assert card["robust"]["images"] == 8


def test_the_route_of_a_quantised_file_is_bpda(tmp_path: Path) -> None:
    data = purifier.ImageData("random", images(80), answers(80))
    card = export(guard(linear(), "blur"), tmp_path / "guarded.onnx", precision="int8", data=data, sample=4).card
    assert card["calibration"] == {"data": "random", "images": 40}
    assert (card["clean"]["images"], card["robust"]["route"]) == (40, "bpda")


def test_all_precisions_are_judged_on_the_same_images(tmp_path: Path) -> None:
    data = purifier.ImageData("random", images(70), answers(70))
    found = [
        export(guard(linear(), "blur"), tmp_path / "guarded.onnx", precision=precision, data=data, sample=4).card
        for precision in ("fp32", "fp16", "int8")
    ]
    assert len({card["clean"]["images"] for card in found}) == 1
    assert len({card["clean"]["guard_accuracy"] for card in found}) == 1


def label_only() -> onnx.ModelProto:
    model = linear()
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["N"]))
    return model


def two_answers() -> onnx.ModelProto:
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["a"]),
        onnx.helper.make_node("Neg", ["a"], ["b"]),
    ]
    sizes: list[int | str] = ["N", 3, 2, 2]
    return model_of(nodes, inputs=[("x", FLOAT, sizes)], outputs=[("a", FLOAT, ["N", 12]), ("b", FLOAT, ["N", 12])])


def test_what_cannot_be_attacked_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "guarded.onnx"
    card = export(guard(label_only(), "blur", output_kind="label"), path, data=images()).card
    assert card["clean"] == {"images": 24, "agreement": 1.0}
    assert "a class alone, which has no gradient" in card["robust"]["missing"]
    vae = "vae:image_shape=3x8x8,channels=4,latent=3,sample=true"
    card = export(guard(linear(), vae), path, data=images(), noise="input").card
    assert card["clean"]["agreement"] == 1.0
    assert "the input purifier_noise, which an audit does not draw" in card["robust"]["missing"]


def test_data_needs_to_know_which_output_is_the_answer(tmp_path: Path) -> None:
    data = torch.rand((4, 3, 2, 2))
    with pytest.raises(purifier.PurifierError, match="none of the outputs is sure to be the classifier's answer"):
        export(guard(two_answers(), "identity"), tmp_path / "guarded.onnx", data=data)
    assert not list(tmp_path.iterdir())
    card = export(guard(two_answers(), "identity", output="b"), tmp_path / "guarded.onnx", data=data, sample=1).card
    assert card["clean"]["agreement"] == 1.0


def test_images_that_are_rejected_by_both_agree(tmp_path: Path) -> None:
    blur = purifier.load("blur")
    scores = blur.score(images())
    blur.provenance = {
        "calibration": {
            "fpr": 0.5,
            "threshold": float(scores.median()),
            "data": "x",
            "count": 9,
            "quantiles": [0.0] * 101,
        }
    }
    for way in ("flag", "abstain"):
        card = export(guard(linear(), blur, on_reject=way), tmp_path / "guarded.onnx", data=images(), sample=6).card
        assert card["clean"]["agreement"] == 1.0
        assert "missing" not in card["robust"]


def test_the_command_prints_the_card(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source, path, data = tmp_path / "net.onnx", tmp_path / "guarded.onnx", tmp_path / "data.npz"
    onnx.save(linear(), source)
    np.savez(data, images=images(70).numpy(), labels=answers(70).numpy())
    given = ("export", "--classifier", source, "--purifier", "blur", "--out", path)
    code, shown, _ = command(*given)
    assert code == 0 and "agreement, clean and robust accuracy were not measured; give --data" in shown
    wanted = ("--precision", "int8", "--batch", "5", "--data", f"npz:{data}", "--eps", "2/255", "--sample", "5")
    code, shown, _ = command(*given, *wanted)
    card = json.loads((tmp_path / "guarded.onnx.json").read_text())
    assert code == 0 and (card["precision"], card["latency"]["batch"]) == ("int8", 5)
    assert card["robust"]["threat"] == str(purifier.Threat("linf", 2 / 255))
    assert f"sha256 {card['sha256']}" in shown
    assert f"calibrated on 35 images of npz:{data}" in shown
    assert "apgd-ce:steps=20, bpda, linf" in shown and f"{card['clean']['agreement']:.1%}" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), "--precision int8 needs --data with 64 images or more"),
        (("--precision", "half"), "--precision: expected one of fp32, fp16, int8, got 'half'"),
        (("--eps", "0.1"), "--eps needs --data, whose images it is for"),
        (("--resize", "8"), "--resize needs --data"),
        (("--batch", "0"), "--batch: expected a batch size"),
        (("--precision", "fp16", "--format", "torch"), "exporter 'torch' has no option 'precision'"),
    ],
)
def test_bad_options_end_in_exit_code_2(
    words: tuple[str, ...], message: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source, path = tmp_path / "net.onnx", tmp_path / "guarded.onnx"
    onnx.save(linear(), source)
    code, _, errors = command("export", "--classifier", source, "--purifier", "blur", "--out", path, *words)
    assert code == 2 and message in errors
    assert not path.exists()
