"""What a graph as a module promises: precision, devices, batches, bodies, functions, surrogates, errors."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from peers import by_runtime, check_agreement
from purifier.classifiers.graph.module import GraphModule
from purifier.errors import ClassifierError, ConfigError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def parsed(text: str, head: str = HEAD) -> ModelProto:
    return onnx.parser.parse_model(f"{head}\n{text}")


def net(precision: int = TensorProto.FLOAT) -> ModelProto:
    """Two convolutions, a pooling and a linear layer, for images (N, 3, H, W)."""
    random = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(precision)
    arrays = {"a": (4, 3, 3, 3), "b": (4,), "c": (5, 4, 3, 3), "d": (6, 5), "e": (6,)}
    stored = [numpy_helper.from_array(random.normal(size=s).astype(dtype), n) for n, s in arrays.items()]
    name = {TensorProto.FLOAT: "float", TensorProto.FLOAT16: "float16"}[precision]
    model = parsed(f"""
        net ({name}[N, 3, H, W] image) => ({name}[N, 6] logits) {{
            x = Conv <pads = [1, 1, 1, 1]> (image, a, b)
            y = Relu (x)
            z = Conv <strides = [2, 2]> (y, c)
            p = GlobalAveragePool (z)
            f = Flatten (p)
            logits = Gemm <transB = 1> (f, d, e)
        }}""")
    model.graph.initializer.extend(stored)
    return model


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(count, 3, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_size_agrees_with_onnx_runtime(count: int) -> None:
    check_agreement(net(), {"image": images(count).numpy()})


def test_gradients_agree_with_finite_differences_in_float64() -> None:
    module = GraphModule(net()).double()
    leaf = images(dtype=torch.float64).requires_grad_()
    assert module(leaf)["logits"].dtype == torch.float64
    assert torch.autograd.gradcheck(lambda given: module(given)["logits"], [leaf], fast_mode=True)


def test_float16_graphs_agree_with_onnx_runtime() -> None:
    check_agreement(net(TensorProto.FLOAT16), {"image": images(dtype=torch.float16).numpy()}, tolerance=2e-2)


def test_a_conversion_makes_one_type_of_all_floats() -> None:
    model = parsed("""
        net (float[N, 3] image) => (float[N, 3] logits, float16[N, 3] halves) {
            halves = Cast <to = 10> (image)
            back = Cast <to = 1> (halves)
            shape = Shape (image)
            ones = ConstantOfShape <value = float[1] {1.0}> (shape)
            logits = Add (back, ones)
        }""")
    module = GraphModule(model)
    given = torch.tensor([[0.1, 0.2, 0.3]])
    assert module(given)["halves"].dtype == torch.float16
    found = module.double()(given.double())
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert torch.equal(found["logits"], given.double() + 1)  # nothing was rounded to float16
    assert {value.dtype for value in module.half()(given).values()} == {torch.float16}
    assert module.float()(given)["logits"].dtype == torch.float32


def test_a_copy_is_converted_alone() -> None:
    module = GraphModule(net())
    other = copy.deepcopy(module).double()
    assert module(images())["logits"].dtype == torch.float32
    assert other(images())["logits"].dtype == torch.float64


def test_a_model_without_data_dependent_shapes_runs_on_another_device() -> None:
    model = parsed("""
        net (float[N, 3, 8, 8] image) => (float[N, M] logits) {
            shape = Shape <start = 0, end = 1> (image)
            rest = Constant <value = int64[1] {-1}> ()
            sizes = Concat <axis = 0> (shape, rest)
            flat = Reshape (image, sizes)
            places = Constant <value = int64[3] {5, 1, 0}> ()
            some = Gather <axis = 1> (flat, places)
            factor = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
            logits = Mul (some, factor)
        }""")
    module = GraphModule(model).to("meta")
    found = module(torch.empty(4, 3, 8, 8, device="meta"))["logits"]
    assert (found.device.type, tuple(found.shape)) == ("meta", (4, 3))


def test_weights_are_freed_with_the_module() -> None:
    module = GraphModule(net())
    weight = weakref.ref(next(module.buffers()))
    module.double()
    gc.collect()
    assert weight() is None


def test_functions_of_the_model_are_inlined_with_their_attributes() -> None:
    model = parsed(
        """
        net (float[N, 3] image) => (float[N, 3] logits) {
            a = own.scaled <factor = 3.0> (image)
            logits = own.scaled (a)
        }
        <domain: "own", opset_import: ["" : 17]>
        scaled <factor: float = 2.0> (x) => (y) {
            f = Constant <value_float: float = @factor> ()
            y = Mul (x, f)
        }""",
        '<ir_version: 9, opset_import: ["" : 17, "own" : 1]>',
    )
    given = torch.rand(2, 3)
    assert torch.allclose(GraphModule(model)(given)["logits"], given * 6)


def test_nodes_in_any_order_are_sorted() -> None:
    model = net()
    nodes = list(model.graph.node)[::-1]
    expected = GraphModule(model)(images())["logits"]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert torch.equal(GraphModule(model)(images())["logits"], expected)


def test_what_the_outputs_do_not_need_is_left_out() -> None:
    model = net()
    model.graph.node.append(helper.make_node("TfIdfVectorizer", ["logits"], ["words"]))
    model.graph.output.append(helper.make_tensor_value_info("words", TensorProto.FLOAT, None))
    assert list(GraphModule(model, ["logits"])(images())) == ["logits"]
    inner = GraphModule(model, ["p"])(images())["p"]
    assert inner.shape == (2, 5, 1, 1)


def test_operators_without_support_are_named_before_anything_runs() -> None:
    model = net()
    model.graph.node.append(helper.make_node("TfIdfVectorizer", ["logits"], ["words"]))
    model.graph.output.append(helper.make_tensor_value_info("words", TensorProto.FLOAT, None))
    with pytest.raises(
        ClassifierError, match=r"x\.onnx: .*TfIdfVectorizer of domain ai\.onnx \(opset 17\).*queries only"
    ):
        GraphModule(model, file="x.onnx")


def test_attributes_that_are_not_supported_are_errors_at_construction() -> None:
    model = parsed("net (float[N, 3] image) => (float[N, 3] logits) { logits = Cast <to = 8> (image) }")
    with pytest.raises(ClassifierError, match=r"Cast 'logits' failed .*string.*queries only"):
        GraphModule(model)


def test_names_that_nothing_computes_are_errors() -> None:
    model = parsed("net (float[N, 3] image) => (float[N, 3] logits) { logits = Add (image, absent) }")
    with pytest.raises(ClassifierError, match=r"nothing before it computes 'absent'"):
        GraphModule(model)


@pytest.mark.parametrize("given", [{}, {"image": images(), "other": images()}])
def test_missing_and_unknown_inputs_are_errors(given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="expected the inputs image"):
        GraphModule(net())(**given)


def test_errors_while_running_name_the_node() -> None:
    with pytest.raises(RuntimeError) as caught:
        GraphModule(net())(torch.rand(2, 4, 9, 8))
    assert caught.value.__notes__ == ["in Conv 'x'"]


def test_initializers_that_are_inputs_too_are_constants() -> None:
    model = net()
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, (4,)))
    module = GraphModule(model)
    assert module.input_names == ("image",)
    assert np.allclose(module(images())["logits"], by_runtime(model, {"image": images().numpy()})["logits"], atol=1e-5)


@pytest.mark.parametrize("bounds", ["zero, one", "zero", ", one"])
def test_limits_have_a_gradient_where_black_and_white_pixels_lie(bounds: str) -> None:
    module = GraphModule(
        parsed(f"""
        net (float[N, 4] image) => (float[N, 4] logits) {{
            zero = Constant <value = float {{0.0}}> ()
            one = Constant <value = float {{1.0}}> ()
            logits = Clip (image, {bounds})
        }}""")
    )
    leaf = torch.tensor([[0.0, 1.0, -0.5, 1.5]], requires_grad=True)
    (gradient,) = torch.autograd.grad(module(leaf)["logits"].sum(), leaf)
    assert gradient.tolist() == [[1, 1, float("zero" not in bounds), float("one" not in bounds)]]


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran"])
def test_a_deep_copy_has_weights_of_its_own(ran: bool) -> None:
    module, given = GraphModule(net()), images()
    expected = module(given)["logits"] if ran else GraphModule(net())(given)["logits"]
    copied = copy.deepcopy(module).double()
    assert torch.allclose(copied(given.double())["logits"].float(), expected, atol=1e-5)
    for buffer in copied.buffers():
        buffer.zero_()
    assert not copied(given.double())["logits"].any() and torch.equal(module(given)["logits"], expected)


def test_a_module_is_not_pickled() -> None:
    for write in (pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
        with pytest.raises(ConfigError, match="GraphModule cannot be pickled.* in each process.*state_dict"):
            write(GraphModule(net()))


def test_weights_go_from_one_module_of_a_model_to_another_by_name() -> None:
    other = ModelProto.FromString(net().SerializeToString())
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    first, second = GraphModule(net()), GraphModule(other)
    first(images())  # what it keeps for these sizes has no name
    assert list(first.state_dict()) == list(second.state_dict()) and len(first.state_dict()) == 5
    before = first(images())["logits"]
    first.load_state_dict(second.state_dict())
    assert not torch.allclose(first(images())["logits"], before)
    assert torch.equal(first(images())["logits"], second(images())["logits"])
