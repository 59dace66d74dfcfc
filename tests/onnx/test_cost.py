"""ONNX files of a few kilobytes that would take minutes or gigabytes; a Loop without an end."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import purifier
from onnx_models import FLOAT, linear
from purifier.errors import ClassifierError, ConfigError
from purifier.onnx.limits import onnx_limits
from purifier.onnx.reader import load_onnx


def nested_functions(levels: int, calls: int = 2) -> ModelProto:
    """Each function calls the next ``calls`` times: ``calls ** levels`` nodes."""
    model = linear()
    for level in range(levels):
        last = level == levels - 1
        names = ["x", *(f"v{number}" for number in range(calls - 1)), "y"]
        kind, domain = ("Neg", "") if last else (f"F{level + 1}", "deep")
        nodes = [
            helper.make_node(kind, [before], [after], domain=domain) for before, after in itertools.pairwise(names)
        ]
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("deep", 1)]
        model.functions.append(helper.make_function("deep", f"F{level}", ["x"], ["y"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("deep", 1))
    model.graph.node.append(helper.make_node("F0", ["images"], ["again"], domain="deep"))
    return model


def with_nodes(*nodes: object, **stored: object) -> ModelProto:
    model = linear()
    model.graph.node.extend(nodes)
    for name, value in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def node(op_type: str, inputs: str, output: str, **attributes: object) -> object:
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


def loop(count: str = "", inner: object = None, inside: str = "i") -> object:
    """A Loop whose body negates a number, or holds another Loop; its condition never ends it."""
    names = [f"{inside}_step", f"{inside}_go", f"{inside}_x"]
    nodes = [node("Identity", names[1], f"{inside}_still"), node("Neg", names[2], f"{inside}_y")]
    body = helper.make_graph(
        [*nodes, *([inner] if inner else [])],
        "body",
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in zip(names, (TensorProto.INT64, TensorProto.BOOL, FLOAT), strict=True)
        ],
        [
            helper.make_tensor_value_info(f"{inside}_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{inside}_y", FLOAT, []),
        ],
    )
    return helper.make_node("Loop", [count, "", "zero"], [f"{inside}_out"], name=f"loop_{inside}", body=body)


def test_nested_functions_are_counted_before_they_are_inlined() -> None:
    model = nested_functions(40)  # 10**12 nodes
    assert model.ByteSize() < 10_000
    with pytest.raises(
        ClassifierError, match=r"has 1\.1e\+12 nodes once its functions are inlined, the limit is 50,000"
    ):
        load_onnx(model)
    assert load_onnx(nested_functions(8))
    with (
        onnx_limits(nodes=100),
        pytest.raises(ClassifierError, match=r"258 nodes.*raise the limit with .*nodes=\.\.\."),
    ):
        load_onnx(nested_functions(8))


def test_functions_that_call_themselves_are_errors() -> None:
    model = nested_functions(2)
    model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "F0", "deep"
    with pytest.raises(ClassifierError, match="deep, or 'F.' calls itself"):
        load_onnx(model)
    with pytest.raises(ClassifierError, match="more than 100 deep"):
        load_onnx(nested_functions(2000, calls=1))


BIG = 2**18
COMPUTED = {
    "product": (node("Mul", "side side2", "s"),),
    "power": (node("Pow", "side power", "p"), node("Concat", "p p", "s", axis=0)),
    "joined": (node("Unsqueeze", "scalar zeros", "u"), node("Concat", "u side", "s", axis=0)),
    "from the image": (
        node("Shape", "images", "shape"),
        node("ReduceProd", "shape", "r", keepdims=1),
        node("Mul", "r side", "t"),
        node("Mul", "t side2", "s"),
    ),
}


@pytest.mark.parametrize("way", COMPUTED)
@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand"])
def test_computed_shapes_are_folded(way: str, kind: str) -> None:
    makes = node(kind, "s" if kind == "ConstantOfShape" else "zero s", "giant")
    stored = {"side": [BIG], "side2": [BIG], "power": 2, "scalar": BIG, "zeros": [0], "zero": np.float32(0)}
    model = with_nodes(*COMPUTED[way], makes, **stored)
    with pytest.raises(ClassifierError, match=rf"{kind} '' creates .*e\+.* elements whatever the image"):
        load_onnx(model)
    with onnx_limits(elements=math.inf):
        assert load_onnx(model)


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        ((node("MatMul", "column row", "giant"),), "MatMul"),
        ((node("Range", "zeros_s many ones_s", "giant"),), "Range"),
        ((node("Resize", "images none scales", "giant", mode="nearest"),), "Resize"),
        ((node("Pad", "images pads", "giant"),), "Pad"),
    ],
)
def test_other_operators_that_make_much_of_little_are_counted(nodes: tuple[object, ...], kind: str) -> None:
    stored = {
        "column": np.zeros((2**15, 1), np.float32),
        "row": np.zeros((1, 2**15), np.float32),
        "zeros_s": np.int64(0),
        "many": np.int64(2**40),
        "ones_s": np.int64(1),
        "none": np.zeros(0, np.float32),
        "scales": np.float32([1, 1, 10_000, 10_000]),
        "pads": [0, 0, 2**20, 2**20, 0, 0, 0, 0],
    }
    with pytest.raises(ClassifierError, match=f"{kind} '' creates"):
        load_onnx(with_nodes(*nodes, **stored))


def test_a_wrong_declaration_does_not_hide_a_giant() -> None:
    model = with_nodes(*COMPUTED["product"], node("ConstantOfShape", "s", "giant"), side=[BIG], side2=[BIG])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    model.graph.node.insert(0, node("Conv", "images", "broken"))
    with pytest.raises(ClassifierError, match="ConstantOfShape '' creates"):
        load_onnx(model)


def test_loops_without_an_end_are_refused_and_can_be_allowed() -> None:
    endless = with_nodes(loop(), zero=np.float32(0))
    with pytest.raises(ClassifierError, match=r"Loop 'loop_i' has no trip count.*may never end.*loop_steps=\.\.\."):
        load_onnx(endless)
    with onnx_limits(loop_steps=math.inf):
        assert load_onnx(endless)


def counting(
    end: object, *, start: object = 0, step: object = 1, kind: str = "Less", by: str = "after", extra: str = ""
) -> ModelProto:
    """``while i < end: i = i + step``, as torch exports it: without a trip count."""
    dtype = TensorProto.INT64 if np.asarray(step).dtype == np.int64 else TensorProto.DOUBLE
    pair = ["end", by] if kind.startswith("Greater") else [by, "end"]
    nodes = [
        helper.make_node("Add", ["step", "before"], ["after"]),
        helper.make_node(kind, pair, ["more"]),
        helper.make_node("And", ["go", "more"], ["both"]) if extra == "And" else node("Or", "go more", "both"),
        node("Identity", "both" if extra else "more", "still"),
    ]
    inputs = [("at", TensorProto.INT64), ("go", TensorProto.BOOL), ("before", dtype)]
    outputs = [("still", TensorProto.BOOL), ("after", dtype)]
    values = [[helper.make_tensor_value_info(*value, []) for value in side] for side in (inputs, outputs)]
    body = helper.make_graph(nodes, "body", *values)
    counted = helper.make_node("Loop", ["", "yes", "start"], ["last"], name="counted", body=body)
    return with_nodes(counted, start=start, step=step, end=end, yes=np.array(True))


@pytest.mark.parametrize("kind", ["Less", "GreaterOrEqual"])
@pytest.mark.parametrize("by", ["after", "before", "at"])
@pytest.mark.parametrize("extra", ["", "And"])
def test_a_condition_that_counts_ends_a_loop(kind: str, by: str, extra: str) -> None:
    assert load_onnx(counting(9_000, kind=kind, by=by, extra=extra))
    with pytest.raises(ClassifierError, match=r"runs 1e\+06 steps"):
        load_onnx(counting(10**6, kind=kind, by=by, extra=extra))


def test_steps_of_a_counter_follow_from_start_and_step() -> None:
    assert load_onnx(counting(10**6, start=10**6 - 9_000))
    assert load_onnx(counting(10**6, step=200))


@pytest.mark.parametrize(
    "model",
    [
        counting(9, step=0),
        counting(9, step=-1),
        counting(9.0, start=0.0, step=1e-30),
        counting(9, extra="Or"),
        counting(9, kind="Greater", by="before", start=3, step=-1),
    ],
)
def test_a_counter_that_may_not_arrive_ends_nothing(model: ModelProto) -> None:
    with pytest.raises(ClassifierError, match="may never end"):
        load_onnx(model)


def test_an_exported_loop_of_gradient_steps_can_be_read_again(tmp_path: Path) -> None:
    spec = "latent:base=demo-plain,steps=3,loop=true"
    purifier.export(purifier.guard("demo", spec), tmp_path / "guarded.onnx", batches=(2,))
    loops = [one for one in load_onnx(tmp_path / "guarded.onnx").graph.node if one.op_type == "Loop"]
    assert len(loops) == 1 and not loops[0].input[0]


def test_steps_of_nested_loops_multiply() -> None:
    stored = {"zero": np.float32(0), "few": np.int64(90), "many": np.int64(2**62), "half": np.int64(2**10)}
    assert load_onnx(with_nodes(loop("few", loop("few", inside="j")), **stored))
    for model, steps in (
        (with_nodes(loop("many"), **stored), r"4\.61e\+18"),
        (with_nodes(loop("few", loop("half", inside="j")), **stored), r"9\.22e\+04"),
        (with_nodes(node("Mul", "half half", "m"), loop("m"), **stored), r"1\.05e\+06"),
    ):
        with pytest.raises(ClassifierError, match=rf"runs {steps} steps, .* around it, the limit is 10,000"):
            load_onnx(model)


def test_loops_of_as_many_steps_as_an_image_has_rows_are_accepted() -> None:
    rows = (node("Shape", "images", "shape"), node("Gather", "shape two", "rows"))
    assert load_onnx(with_nodes(*rows, loop("rows"), two=np.int64(2), zero=np.float32(0)))


@pytest.mark.parametrize("value", [0, -1, math.nan, True, "many"])
def test_limits_are_positive_numbers(value: object) -> None:
    with (
        pytest.raises(ConfigError, match="onnx_limits: nodes must be a positive number, got"),
        onnx_limits(nodes=value),
    ):  # type: ignore[arg-type]
        pass
