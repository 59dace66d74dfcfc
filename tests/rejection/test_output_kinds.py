"""What replaces the answers for rejected images, for each kind of answer, in torch and in an ONNX graph."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from onnx_models import FLOAT, model_of
from purifier.errors import ClassifierError, ConfigError
from purifier.guards.exporting import export
from purifier.guards.guard import guard
from scoring_purifiers import Bright, Classes, calibrated, dark_and_bright

PIXELS, REJECTED = dark_and_bright(), torch.tensor([False, True, False, True, True, False])
WEIGHT = 0.1 * np.random.default_rng(5).normal(size=(784, 3)).astype(np.float32)
KINDS = ("probabilities", "binary-logit", "binary-probability")
NAN, INF = float("nan"), float("inf")


class Two(Classes):
    """A purifier with two classes of its own."""

    def classify(self, pixels: Tensor) -> Tensor:
        return torch.log_softmax(5 * pixels[:, 0, 14, 14:16], 1)


class Three(Classes):
    """A purifier with three classes of its own."""

    def classify(self, pixels: Tensor) -> Tensor:
        return torch.log_softmax(5 * pixels[:, 0, 14, 14:17], 1)


@functools.cache
def purifier_with(classes: int) -> Bright:
    return calibrated({0: Bright, 2: Two, 3: Three}[classes]())


class Net(nn.Module):
    """Linear: three probabilities, or one logit or probability, (N, 1) or (N,)."""

    def __init__(self, kind: str, flat: bool = False) -> None:
        super().__init__()
        self.kind, self.flat = kind, flat
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT if kind == "probabilities" else WEIGHT[:, :1]))

    def forward(self, images: Tensor) -> Tensor:
        found = images.flatten(1) @ self.weight
        made = {"probabilities": found.softmax(1), "binary-logit": found}.get(self.kind, found.sigmoid())
        return made[:, 0] if self.flat else made


def as_graph(kind: str, flat: bool = False, dtype: int = FLOAT) -> ModelProto:
    """The same as ONNX, after an output of features."""
    last = {"probabilities": "Softmax", "binary-logit": "Identity", "binary-probability": "Sigmoid"}[kind]
    columns = 3 if kind == "probabilities" else 1
    nodes = [
        helper.make_node("Flatten", ["images"], ["feat"]),
        helper.make_node("MatMul", ["feat", "weight"], ["product"]),
        helper.make_node(last, ["product"], ["made"]),
        helper.make_node("Cast", ["made"], ["cast"], to=dtype),
        helper.make_node("Reshape", ["cast", "shape"], ["out"]),
    ]
    return model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 1, 28, 28])],
        outputs=[("feat", FLOAT, ["N", 784]), ("out", dtype, ["N"] if flat else ["N", columns])],
        initializers={"weight": WEIGHT[:, :columns], "shape": np.array([-1] if flat else [-1, columns])},
    )


FORMS = [("probabilities", False), *((kind, flat) for kind in KINDS[1:] for flat in (False, True))]
ROWS: dict[tuple[str, int | None], list[float]] = {
    ("probabilities", None): [NAN] * 3,
    ("probabilities", 1): [0.0, 1.0, 0.0],
    ("binary-logit", None): [NAN],
    ("binary-logit", 0): [-INF],
    ("binary-logit", 1): [INF],
    ("binary-probability", None): [NAN],
    ("binary-probability", 0): [0.0],
    ("binary-probability", 1): [1.0],
}


def check_both(
    kind: str, flat: bool, options: dict[str, Any], row: Tensor, which: Bright, path: Path, *, traced: bool = True
) -> None:
    """The guard in torch and the session answer ``row`` (n, K) for rejected images, and nothing else is changed.

    So do the files exported from them; with ``traced=False`` only the session's, because tracing a module takes long.
    """
    with torch.no_grad():
        found = guard(Net(kind, flat), which, output_kind=kind, **options)(PIXELS)
        expected = guard(Net(kind, flat), which)(PIXELS)
    expected[REJECTED] = row.squeeze(1) if flat else row
    torch.testing.assert_close(found, expected, equal_nan=True)
    session = guard(as_graph(kind, flat), which, output="out", output_kind=kind, **options)
    features, answer = session.run(None, {"images": PIXELS.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), expected, equal_nan=True, atol=1e-5, rtol=1e-4)
    assert features.shape == (6, 784) and np.isfinite(features).all()
    module = guard(Net(kind, flat), which, output_kind=kind, **options)
    for number, made in enumerate((session, module) if traced else (session,)):
        written = export(made, path / f"{number}.onnx").path
        last = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
        answer = last.run(None, {last.get_inputs()[0].name: PIXELS.numpy()})[-1]
        torch.testing.assert_close(torch.from_numpy(answer), expected, equal_nan=True, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "flat"), FORMS)
def test_abstaining_gives_nan_or_certainty_of_one_class(kind: str, flat: bool, tmp_path: Path) -> None:
    for (of, abstain), row in ROWS.items():
        if of == kind:
            options = {"on_reject": "abstain", "abstain": abstain}
            # What is added for rejected images is the same in both files, so one row of each form is traced.
            check_both(kind, flat, options, torch.tensor([row]), purifier_with(0), tmp_path, traced=abstain == 1)


@pytest.mark.parametrize(("kind", "flat"), FORMS)
def test_reclassifying_answers_in_the_classifiers_own_kind(kind: str, flat: bool, tmp_path: Path) -> None:
    which = purifier_with(3 if kind == "probabilities" else 2)
    own = which.classify(PIXELS[REJECTED]).exp()  # type: ignore[attr-defined]
    odds = own[:, 1:] / own[:, :1]
    row = {"probabilities": own, "binary-logit": odds.log(), "binary-probability": odds / (1 + odds)}[kind]
    check_both(kind, flat, {"on_reject": "reclassify"}, row, which, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_half_and_double_precision_keep_their_type(kind: Any) -> None:
    for dtype, precision in ((TensorProto.FLOAT16, torch.float16), (TensorProto.DOUBLE, torch.float64)):
        which = purifier_with(3 if kind == "probabilities" else 2)
        session = guard(as_graph(kind, dtype=dtype), which, output=1, output_kind=kind, on_reject="reclassify")
        answer = torch.from_numpy(session.run(["out"], {"images": PIXELS.numpy()})[0])
        with torch.no_grad():
            expected = guard(Net(kind), which, output_kind=kind, on_reject="reclassify")(PIXELS)
        torch.testing.assert_close(answer, expected.to(precision), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
@pytest.mark.parametrize(
    ("kind", "classes", "options", "message"),
    [
        (
            "binary-logit",
            3,
            {"on_reject": "reclassify"},
            "3 classes, but the classifier has 2; use on_reject='abstain'",
        ),
        ("binary-probability", 3, {"on_reject": "reclassify"}, "3 classes, but the classifier has 2"),
        ("probabilities", 2, {"on_reject": "reclassify"}, "2 classes, but the classifier has 3"),
        ("binary-logit", 0, {"on_reject": "abstain", "abstain": 2}, "expected a class from 0 to 1, got 2"),
        ("probabilities", 0, {"on_reject": "abstain", "abstain": 3}, "expected a class from 0 to 2, got 3"),
    ],
)
def test_classes_that_do_not_fit_are_errors(
    kind: Any, classes: int, options: dict[str, Any], message: str, onnx: bool
) -> None:
    with pytest.raises(ConfigError, match=message):
        model = as_graph(kind) if onnx else Net(kind)
        guard(model, purifier_with(classes), output=1 if onnx else None, output_kind=kind, **options)(PIXELS)


def test_an_answer_of_another_form_is_an_error() -> None:
    for kind, given, message in (
        ("logits", "binary-logit", "one number per image.*output_kind='binary-logit'"),
        ("binary-logit", "probabilities", "must return one logit per image"),
    ):
        with pytest.raises(ClassifierError, match=message):
            guard(Net(given), purifier_with(0), output_kind=kind, on_reject="abstain")
        with pytest.raises(ClassifierError, match=message):
            guard(as_graph(given), purifier_with(0), output="out", output_kind=kind, on_reject="abstain")
    unknown = as_graph("binary-logit")
    unknown.graph.output[1].type.tensor_type.ClearField("shape")
    with pytest.raises(ClassifierError, match="does not declare the shape of its output 'out'.*on_reject='flag'"):
        guard(unknown, purifier_with(0), output="out", output_kind="binary-logit", on_reject="abstain")
    with pytest.raises(ClassifierError, match="2 outputs of the classifier can be its probabilities.*on_reject='flag'"):
        guard(as_graph("probabilities"), purifier_with(0), output_kind="probabilities", on_reject="abstain")
