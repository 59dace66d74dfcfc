"""One bad image never costs the batch: NaN, infinity and values out of range, in torch, sessions and exported files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

import purifier
from onnx_models import FLOAT, model_of
from purifier import Preprocessing
from purifier.errors import ConfigError, ExportError, PixelError, RejectedError
from purifier.guards.session import GuardedSession
from purifier.onnx.labels import Labels
from purifier.output import Output
from scoring_purifiers import Classes, calibrated

COUNT, BAD = 64, 17
MANY = {3: math.nan, 17: 1.5, 20: math.inf, 41: -math.inf, 63: -0.5}
SPECS = {"raise": {}, "flag": {"on_reject": "flag"}, "abstain": {"on_reject": "abstain"}}
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.nn.functional.max_pool2d(self.layer(x).relu(), 2).mean((2, 3)))


def graph(kind: int = FLOAT) -> ModelProto:
    """A classifier with ReLU and max-pooling, which lose NaN; its outputs are a label, logits and probabilities."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Conv", ["wide", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalMaxPool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["logits"], ["prob"], axis=1),
    ]
    shape = ["N", 10]
    return model_of(
        nodes,
        inputs=[("x", kind, ["N", 1, 28, 28])],
        outputs=[("label", TensorProto.INT64, ["N"]), ("logits", FLOAT, shape), ("prob", FLOAT, shape)],
        initializers={
            "kernel": random.normal(size=(4, 1, 3, 3)).astype(np.float32),
            "weight": random.normal(size=(4, 10)).astype(np.float32),
        },
    )


def only(model: ModelProto, *names: str) -> ModelProto:
    kept = [output for output in model.graph.output if output.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def images() -> Tensor:
    """Half of them dark, half of them bright, which a threshold of 0.5 rejects."""
    noise = torch.rand((COUNT, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    return noise * 0.3 + 0.7 * (torch.arange(COUNT) % 2).view(-1, 1, 1, 1)


def spoilt(values: dict[int, float] | None = None) -> Tensor:
    """The same images, with one bad pixel in some of them."""
    made = images()
    for place, value in (values or {BAD: math.nan}).items():
        made[place, 0, 5, 5] = value
    return made


class Answers(NamedTuple):
    logits: Tensor
    rejected: Tensor | None = None


def of_module(guarded: Any, given: Tensor) -> Answers:
    with torch.no_grad():
        found = guarded(given)
    return Answers(*found) if isinstance(found, tuple) else Answers(found)


def of_session(session: Any, given: Tensor) -> Answers:
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    found = dict(zip(names, map(torch.from_numpy, values), strict=True))
    return Answers(found["logits"], found.get("purifier_rejected"))


def plain(model: Path | ModelProto) -> onnxruntime.InferenceSession:
    source = model.SerializeToString() if isinstance(model, ModelProto) else model
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def which() -> Classes:
    return calibrated(Classes())  # type: ignore[return-value]


def made(form: str, path: Path, **options: Any) -> Any:
    """What answers images, made in one of several ways from the same guard, and how it is asked."""
    if form in ("session", "session's graph", "session's file"):
        model = only(graph(), "logits", "prob") if options.get("on_reject") == "abstain" else graph()
        session = purifier.guard(model, which(), output="logits", **options)
        if form == "session":
            return lambda given: of_session(session, given)
        if form == "session's graph":
            return lambda given: of_session(plain(session.model), given)
        written = purifier.export(session, path / "session.onnx").path
        return lambda given: of_session(plain(written), given)
    guarded = purifier.guard(Net().eval(), which(), **options)
    if form == "module's file":
        written = purifier.export(guarded, path / "module.onnx").path
        return lambda given: of_session(plain(written), given)
    if form == "compiled":
        torch.compiler.reset()  # the guards of other tests count as recompilations
        guarded = torch.compile(guarded, backend="eager", fullgraph=True)
    if form == "traced":
        guarded = torch.jit.trace(guarded, images()[:3])
    if form == "torch.export":
        free = ({0: torch.export.Dim("batch")},)
        guarded = torch.export.export(guarded, (images()[:3],), dynamic_shapes={"args": free, "kwargs": {}}).module()
    return lambda given: of_module(guarded, given)


FORMS = [
    *("module", "compiled", "session", "session's graph"),
    *(pytest.param(form, marks=deprecated) for form in ("traced",)),
    *("session's file", "module's file"),
]
SILENT = [form for form in FORMS if form not in ("module", "compiled", "session")]
"""Those that cannot raise errors."""


@pytest.mark.parametrize("values", [{BAD: math.nan}, MANY], ids=["one", "many"])
@pytest.mark.parametrize("on_reject", ["flag", "abstain"])
@pytest.mark.parametrize("form", FORMS)
def test_the_other_images_are_answered_as_without_the_bad_one(
    form: str, on_reject: str, values: dict[int, float], tmp_path: Path
) -> None:
    ask = made(form, tmp_path, on_reject=on_reject, on_bad_pixels="reject")
    expected, found = ask(images()), ask(spoilt(values))
    good = torch.tensor([place not in values for place in range(COUNT)])
    assert torch.equal(found.logits[good].nan_to_num(7), expected.logits[good].nan_to_num(7))
    assert found.logits[~good].isnan().all()
    alone = ask(spoilt(values)[good])
    torch.testing.assert_close(found.logits[good], alone.logits, equal_nan=True, rtol=1e-5, atol=1e-5)
    bright = torch.arange(COUNT) % 2 == 1
    if on_reject == "flag":
        assert torch.equal(found.rejected, bright | ~good)
        assert found.logits[good].isfinite().all()
    else:
        assert torch.equal(found.logits.isnan().all(1), bright | ~good)


@pytest.mark.parametrize("form", FORMS)
def test_a_rejected_bad_image_gets_the_class_of_rejected_images(form: str, tmp_path: Path) -> None:
    ask = made(form, tmp_path, on_reject="abstain", abstain=3, on_bad_pixels="reject")
    row = torch.full((10,), -math.inf).index_fill(0, torch.tensor([3]), 0)
    found = ask(spoilt({2: math.nan, 4: 9.0})).logits
    assert torch.equal(found[[2, 4]], row.expand(2, 10))
    assert torch.equal(found[[0, 6]], ask(images()).logits[[0, 6]])


@pytest.mark.parametrize("form", SILENT)
@pytest.mark.parametrize("on_reject", ["ignore", "flag", "reclassify"])
def test_without_an_error_a_bad_image_gets_no_answer(form: str, on_reject: str, tmp_path: Path) -> None:
    ask = made(form, tmp_path, on_reject=on_reject)
    expected, found = ask(images()), ask(spoilt(MANY))
    bad = torch.tensor([place in MANY for place in range(COUNT)])
    assert torch.equal(found.logits[~bad], expected.logits[~bad]) and expected.logits.isfinite().all()
    assert found.logits[bad].isnan().all()
    if on_reject == "flag":
        assert found.rejected is not None and found.rejected[bad].all()


@pytest.mark.parametrize("form", FORMS)
def test_clamping_saves_what_overshoots_and_nothing_else(form: str, tmp_path: Path) -> None:
    ask, overshooting = made(form, tmp_path, on_bad_pixels="clamp"), images()
    overshooting[::2] = (overshooting[::2] - 0.15) / 0.3 * 1.31 + 0.535  # -0.12 to 1.19, as bicubic resizing gives
    assert overshooting.min() < -0.1 and overshooting.max() > 1.15
    assert torch.equal(ask(overshooting).logits, ask(overshooting.clamp(0, 1)).logits)
    overshooting[BAD, 0, 0, 0], overshooting[2, 0, 0, 0] = math.nan, math.inf
    if form in ("module", "compiled", "session"):
        with pytest.raises(PixelError, match="got NaN in image 17, infinity in image 2 of 64"):
            ask(overshooting)
    else:
        found = ask(overshooting).logits.isnan()
        assert found.all(1).nonzero().flatten().tolist() == [2, BAD] and int(found.sum()) == 20


@pytest.mark.parametrize("form", ["module", "compiled", "session"])
def test_the_error_names_the_images_and_what_is_wrong_with_them(form: str, tmp_path: Path) -> None:
    ask = made(form, tmp_path)
    with pytest.raises(PixelError, match=r"got NaN in images 3 and 17 of 64 \(counted from 0\); fix the code"):
        ask(spoilt({3: math.nan, 17: math.nan}))
    many = r"got NaN in image 3, infinity in images 20 and 41, \[-0.5, 1.5\] in images 17 and 63 of 64.*preprocessing="
    with pytest.raises(PixelError, match=many):
        ask(spoilt(MANY))
    with pytest.raises(PixelError, match=r"\[.*, 1.19\] in image 5 of 64.*on_bad_pixels='clamp'"):
        ask(spoilt({5: 1.19}))
    with pytest.raises(PixelError, match="in images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 54 more of 64"):
        ask(images() * math.nan)
    with pytest.raises(PixelError) as raised:
        ask(images() * 255)
    assert "on_bad_pixels" not in str(raised.value)


def test_a_module_without_check_raises_nothing_and_gives_bad_images_no_answer() -> None:
    expected, found = (
        of_module(purifier.guard(Net().eval(), which(), check=check), given).logits
        for check, given in ((True, images()), (False, spoilt(MANY)))
    )
    bad = torch.tensor([place in MANY for place in range(COUNT)])
    assert torch.equal(found[~bad], expected[~bad]) and found[bad].isnan().all()
    with pytest.raises(RejectedError) as raised:
        purifier.guard(Net().eval(), which(), check=False, on_reject="raise")(spoilt({16: math.nan})[14:20:2])
    assert raised.value.rejected.tolist() == [False, True, False]


def test_vmap_gives_a_bad_image_no_answer() -> None:
    guarded = purifier.guard(Net().eval(), which())
    found = torch.func.vmap(guarded)(spoilt()[:, None]).squeeze(1)
    torch.testing.assert_close(found, guarded(images()).where(~found.isnan(), math.nan), equal_nan=True)
    assert found.isnan().all(1).nonzero().flatten().tolist() == [BAD]


def test_nan_spreads_neither_over_batch_norm_nor_into_gradients() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), Net()).train()
    guarded = purifier.guard(net, which(), on_reject="flag", on_bad_pixels="reject").train()
    given = spoilt(MANY).requires_grad_()
    logits, _ = guarded(given)
    good = torch.tensor([place not in MANY for place in range(COUNT)])
    assert logits[good].isfinite().all() and net[0].running_mean.isfinite().all()
    logits[good].sum().backward()
    assert given.grad is not None and given.grad[good].isfinite().all() and given.grad[good].abs().sum() > 0
    assert not given.grad[~good].any()


def test_parts_of_an_output_with_a_row_per_image_get_no_answer() -> None:
    class Several(Net):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            logits = super().forward(x)
            extra = {"label": logits.argmax(1), "byte": logits.argmax(1).byte(), "loss": logits.mean(), "note": "text"}
            return {"logits": logits, "maps": x, "sure": logits.amax(1) > 0, **extra}

    guarded = purifier.guard(Several().eval(), which(), check=False)
    found, expected = guarded(spoilt()), guarded(images())
    assert found["logits"][BAD].isnan().all() and found["maps"][BAD].isnan().all()
    assert (found["label"][BAD], found["byte"][BAD]) == (-1, 255)
    assert found["loss"].isfinite() and found["note"] == "text"
    for name in ("logits", "maps", "label", "byte", "sure"):
        kept = torch.arange(COUNT) != BAD
        assert torch.equal(found[name][kept], expected[name][kept])


@pytest.mark.parametrize("declared", [["N"], ["other"], [None], None])
@pytest.mark.parametrize("kind", ["INT64", "INT32", "INT16", "UINT8", "STRING"])
def test_labels_of_bad_images_name_no_class(kind: str, declared: Any) -> None:
    model = only(graph(), "logits")
    if kind == "STRING":
        names = {"keys_int64s": [*range(10)], "values_strings": [*"abcdefghij"]}
        model.graph.node.append(helper.make_node("LabelEncoder", ["label"], ["chosen"], domain="ai.onnx.ml", **names))
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    else:
        model.graph.node.append(helper.make_node("Cast", ["label"], ["chosen"], to=TensorProto.DataType.Value(kind)))
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.DataType.Value(kind), declared))
    made = purifier.guard(model, which(), output="chosen", output_kind="label").model
    (expected,), (found,) = (plain(made).run(["chosen"], {"x": given.numpy()}) for given in (images(), spoilt(MANY)))
    assert {row for place, row in enumerate(found.tolist()) if place in MANY} == {
        {"STRING": "", "UINT8": 255}.get(kind, -1)
    }
    assert all(row == expected[place] for place, row in enumerate(found) if place not in MANY)
    assert Labels(made, Output("chosen", "label")).classes == ([*"abcdefghij"] if kind == "STRING" else [*range(10)])


def test_outputs_of_other_forms_stay_as_they_are_or_hold_nan() -> None:
    model = only(graph(), "logits")
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "constant"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["logits"], ["mean"], keepdims=0),
            helper.make_node("Identity", ["constant"], ["same"]),
            helper.make_node("Transpose", ["logits"], ["turned"], perm=[1, 0]),
            helper.make_node("SplitToSequence", ["logits"], ["rows"], axis=0),
        ]
    )
    for name, shape in (("mean", None), ("same", None), ("turned", [None, "M"])):
        model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, shape))
    model.graph.output.append(helper.make_tensor_sequence_value_info("rows", FLOAT, None))
    session = purifier.guard(model, which(), output="logits")
    for given in (images(), images()[:1], images()[:0]):
        logits, mean, same, turned, rows = plain(session.model).run(None, {"x": given.numpy()})
        assert mean.shape == () and same.tolist() == [1, 2]
        np.testing.assert_array_equal(turned, logits.T)
        np.testing.assert_array_equal(rows[0] if len(given) else logits, logits[:1])
    rows = plain(session.model).run(["rows"], {"x": spoilt().numpy()})[0]
    assert [place for place, row in enumerate(rows) if np.isnan(row).all()] == [BAD]


def test_a_fixed_batch_and_other_formats(tmp_path: Path) -> None:
    way = Preprocessing(mean=(0.5,), std=(0.25,), dtype="float16")
    model = graph(TensorProto.FLOAT16)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = COUNT
    session = purifier.guard(model, which(), output="logits", preprocessing=way)
    written = purifier.export(session, tmp_path / "half.onnx").path
    label, logits, prob = plain(written).run(None, {"x": way.to_classifier(spoilt(MANY)).numpy()})
    bad = np.array([place in MANY for place in range(COUNT)])
    for found in (label == -1, np.isnan(logits).all(1), np.isnan(logits).any(1), np.isnan(prob).all(1)):
        np.testing.assert_array_equal(found, bad)
    bytes_only = purifier.guard(graph(TensorProto.UINT8), which(), output="logits")
    assert not [node for node in bytes_only.model.graph.node if "bad_pixels" in node.name]


def test_an_exported_file_is_audited_as_before(tmp_path: Path) -> None:
    data = purifier.ImageData("own", images(), torch.zeros(COUNT, dtype=torch.int64))
    for number, options in enumerate(
        ({}, {"on_reject": "flag", "on_bad_pixels": "reject"}, {"on_bad_pixels": "clamp"})
    ):
        session = purifier.guard(graph(), which(), output="logits", **options)
        written = purifier.export(session, tmp_path / f"{number}.onnx").path
        metadata = plain(written).get_modelmeta().custom_metadata_map
        assert metadata["purifier.on_bad_pixels"] == options.get("on_bad_pixels", "raise")
        report = purifier.audit(str(written), data, attacks=(), output="logits")
        other = purifier.audit(session, data, attacks=())
        results = [{row.model: row.result.share for row in made.rows if row.result} for made in (report, other)]
        assert results[0]["undefended"] == results[1]["guarded"]


def test_sessions_run_otherwise_than_by_run_give_a_bad_image_no_answer() -> None:
    session = purifier.guard(graph(), which(), output="logits")
    assert isinstance(session, GuardedSession)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(spoilt().numpy())
    label, logits, _ = session.run(None, {"x": value})
    assert np.isnan(logits).all(1).nonzero()[0].tolist() == [BAD] and label[BAD] == -1


@pytest.mark.parametrize("model", [Net().eval(), graph()], ids=["torch", "onnx"])
def test_wrong_options_are_errors(model: Any) -> None:
    for wrong in ("ignore", None, ["clamp"]):
        with pytest.raises(ConfigError, match="on_bad_pixels must be one of raise, reject, clamp, got"):
            purifier.guard(model, which(), on_bad_pixels=wrong)
    for on_reject in ("ignore", "raise", "reclassify"):
        with pytest.raises(ConfigError, match=f"'reject' needs on_reject='flag' or 'abstain', got {on_reject!r}"):
            purifier.guard(model, which(), output="logits", on_reject=on_reject, on_bad_pixels="reject")


def test_a_file_whose_labels_do_not_follow_the_replaced_logits_is_not_written(tmp_path: Path) -> None:
    session = purifier.guard(graph(), which(), output="logits", on_reject="abstain", abstain=3)
    for node in session.model.graph.node:
        if node.op_type == "ArgMax":
            node.input[0] = "purifier/rejection/logits"
    with pytest.raises(ExportError, match="output 'label'"):
        purifier.export(session, tmp_path / "guarded.onnx")
