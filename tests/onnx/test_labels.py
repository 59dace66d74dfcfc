"""Classifiers that answer with a class and nothing else are audited by that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

import purifier
from onnx_models import FLOAT, model_of
from purifier.attacking.threat import Threat
from purifier.auditing.plan import plan_preset
from purifier.auditing.presets import preset_of
from purifier.data.images import ImageData
from purifier.errors import ClassifierError, ConfigError
from purifier.guards.signature import classifier_alone
from purifier.onnx.labels import Labels
from purifier.onnx.runtime import CPU
from purifier.output import Output

WEIGHT = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
NAMES = ["ant", "bee", "cat", "dog"]
LABEL = Output(kind="label")


def classifier(kind: str = "number", *, extra: str = "") -> ModelProto:
    """A linear classifier that answers with a number, a column of numbers, or a name."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=int(kind == "column")),
    ]
    outputs: list[Any] = [("class", TensorProto.INT64, ["N", 1] if kind == "column" else ["N"])]
    if kind == "name":
        # In another order than the classes, as dictionaries are.
        keys, names = [2, 0, 3, 1], ["cat", "ant", "dog", "bee"]
        attributes = {"domain": "ai.onnx.ml", "keys_int64s": keys, "values_strings": names}
        nodes.append(helper.make_node("LabelEncoder", ["class"], ["name"], **attributes))
        outputs = [("name", TensorProto.STRING, ["N"])]
    if extra == "sequence":
        nodes.append(helper.make_node("SplitToSequence", ["scores"], ["parts"], axis=0))
    model = model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=outputs,
        initializers={"weight": WEIGHT},
        domains=("ai.onnx.ml",),
    )
    model.opset_import[1].version = 2
    if extra == "sequence":
        model.graph.output.append(helper.make_tensor_sequence_value_info("parts", FLOAT, None))
    return model


def data(count: int = 24) -> ImageData:
    pixels = np.random.default_rng(1).random((count, 3, 8, 8), dtype=np.float32)
    labels = (pixels.reshape(count, -1) @ WEIGHT).argmax(1)
    assert len(set(labels.tolist())) > 1
    return ImageData("own", torch.from_numpy(pixels), torch.from_numpy(labels))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("kind", "extra"), [("number", ""), ("column", ""), ("name", ""), ("number", "sequence")])
def test_labels_are_judged_as_they_are(kind: str, extra: str, alone: bool) -> None:
    given: Any = classifier(kind, extra=extra)
    reading = {"output_kind": "label"}
    if not alone:
        given, reading = purifier.guard(given, "identity", output_kind="label", providers=[CPU]), {}
    right = data()
    wrong = ImageData("wrong", right.batch(range(24))[0], (right.labels + 1) % 4)
    for images, expected in ((right, 1), (wrong, 0)):
        report = purifier.audit(given, images, attacks=(), device="cpu", **reading)
        assert {row.result.share for row in report.rows if row.result} == {expected}


def test_a_preset_attacks_labels_with_what_needs_only_labels() -> None:
    read = classifier_alone(classifier(), preprocessing=None, input=None, output=LABEL)
    jobs, left_out = plan_preset(read, None, preset_of("standard"), [Threat("linf", 0.1)], None, random=False)
    assert [job.named.spec for job in jobs] == ["hopskipjump"]
    assert any("'square' needs logits, and the classifier gives labels only" in reason for reason in left_out)


def test_an_attack_by_labels_finds_adversarial_images() -> None:
    attack = ["hopskipjump:queries=300"]
    report = purifier.audit(classifier(), data(6), eps=0.5, attacks=attack, output_kind="label", device="cpu")
    assert [row.result.share for row in report.rows if row.result and row.attack.startswith("hop")] == [0]


def test_attacks_that_need_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="'square' needs logits, and the classifier gives labels only; .*hopskipjump"):
        purifier.audit(classifier(), data(), attacks=["square"], output_kind="label", device="cpu")


def test_the_kind_must_be_declared() -> None:
    with pytest.raises(ClassifierError, match=r"must return logits, .*got .*class.* give output_kind="):
        purifier.audit(classifier(), data(), attacks=(), device="cpu")


@pytest.mark.parametrize("kind", ["number", "name"])
def test_the_classes_come_from_the_file(kind: str) -> None:
    labels = Labels(classifier(kind), LABEL)
    assert labels.classes == (NAMES if kind == "name" else [0, 1, 2, 3])
    given = np.array(["dog", "ant"], dtype=object) if kind == "name" else np.array([[3], [0]])
    assert labels.logits(given).tolist() == [[-1, -1, -1, 1], [1, -1, -1, -1]]
    with pytest.raises(ClassifierError, match=r"the classifier answers .*, which is none of the 4 classes"):
        labels.logits(np.array(["emu"], dtype=object) if kind == "name" else np.array([4]))


def test_a_file_that_does_not_say_its_classes_is_an_error() -> None:
    model = classifier()
    model.graph.node[-1].CopyFrom(helper.make_node("Cast", ["first"], ["class"], to=TensorProto.INT64))
    model.graph.node.insert(2, helper.make_node("ReduceMax", ["scores"], ["first"], keepdims=0))
    with pytest.raises(ClassifierError, match="does not say which classes its output 'class' can name: "):
        purifier.guard(model, "identity", output_kind="label")


def test_labels_are_neither_for_torch_nor_replaced() -> None:
    with pytest.raises(ConfigError, match="'label' is for an ONNX classifier"):
        purifier.guard(torch.nn.Flatten(), "identity", output_kind="label")
    with pytest.raises(ClassifierError, match="only an ONNX file says how many classes"):
        purifier.audit(torch.nn.Flatten(), data(), attacks=(), output_kind="label", device="cpu")


def test_labels_on_the_command_line(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source, images = tmp_path / "classifier.onnx", tmp_path / "data.npz"
    onnx.save(classifier("name"), source)
    pixels, labels = data().batch(range(24))
    np.savez(images, images=pixels.numpy(), labels=labels.numpy())
    given = ("audit", "--classifier", source, "--purifier", "none", "--data", f"npz:{images}", "--out", tmp_path)
    code, shown, _ = command(*given, "--output-kind", "label", "--attack", "none")
    assert code == 0
    assert "100.0%" in shown
