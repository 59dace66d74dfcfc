"""A guarded session is called like a module, with tensors that it shares memory with."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

import purifier
from onnx_models import FLOAT, linear, model_of
from purifier.errors import ConfigError, PixelError, RejectedError
from purifier.guards import bound_run
from purifier.guards.bound_run import FixedMemory, captures, device_of, run_on_tensors
from purifier.onnx.runtime import CPU, RECORD_PLACEMENT


def session_of(**options: Any) -> purifier.GuardedSession:
    return purifier.guard(linear(), "blur", image_shape=(3, 8, 8), providers=[CPU], **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Foreign:
    """Another library's array."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def test_tensors_and_dlpack_give_tensors_and_arrays_give_arrays(images: torch.Tensor) -> None:
    session = session_of()
    expected = session.run(None, {"images": images.numpy()})[0]
    for given in (images, Foreign(images), images.clone().requires_grad_()):
        found = session(given)
        assert isinstance(found, torch.Tensor) and not found.requires_grad
        np.testing.assert_array_equal(found, expected)
    array = session(images.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(session(images.tolist()), expected)
    np.testing.assert_array_equal(copy.copy(session)(images), expected)


def test_inputs_are_shared_and_layouts_do_not_matter(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    session, seen = session_of(), []
    monkeypatch.setattr(bound_run.onnxruntime.OrtValue, "from_dlpack", shared_with(seen))
    expected = session(images)
    assert seen == [images.data_ptr()]
    torch.testing.assert_close(session(images.contiguous(memory_format=torch.channels_last)), expected, rtol=0, atol=0)
    torch.testing.assert_close(session(images.flip(0)), expected.flip(0))


def shared_with(seen: list[int]) -> Any:
    original = onnxruntime.OrtValue.from_dlpack

    def from_dlpack(tensor: torch.Tensor) -> Any:
        value = original(tensor)
        seen.append(value.data_ptr())
        return value

    return from_dlpack


def test_an_answer_outlives_the_next(images: torch.Tensor) -> None:
    session = session_of()
    first = session(images[:2])
    kept = first.clone()
    for _ in range(20):
        session(images[2:])
    assert torch.equal(first, kept)


def test_several_outputs_are_a_tuple(images: torch.Tensor) -> None:
    logits, score = session_of(score=True)(images)
    assert logits.shape == (4, 5) and score.shape == (4,)
    torch.testing.assert_close(score, purifier.load("blur").score(images))


def test_rejected_images_raise_as_in_run(images: torch.Tensor) -> None:
    filter = purifier.load("blur")
    purifier.calibrate(filter, (images, torch.zeros(4, dtype=torch.long)), fpr=0.25)
    session = purifier.guard(linear(), filter, image_shape=(3, 8, 8), providers=[CPU], on_reject="raise")
    flat = torch.full((2, 3, 8, 8), 0.5)
    assert isinstance(session(flat), torch.Tensor)
    sharp = (torch.arange(64).view(8, 8) % 2).expand(1, 3, 8, 8).float()
    with pytest.raises(RejectedError, match="1 of 3 images are rejected") as found:
        session(torch.cat([flat, sharp]))
    assert found.value.rejected.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:, :1], r"expected images \(N, 3, 8, 8\), got \(4, 1, 8, 8\)"),
        (
            lambda images: images.double(),
            r"expected float32 images, got float64; convert them with .to\(torch.float32\)",
        ),
        (lambda images: images * 255, r"expected values in \[0, 1\]"),
        (lambda images: images.index_fill(0, torch.tensor([2]), torch.nan), "got NaN in image 2 of 4"),
        (lambda _: None, "expected a torch tensor, a NumPy array or an object with DLPack, got NoneType"),
    ],
)
def test_impossible_images_are_errors(change: Any, message: str, images: torch.Tensor) -> None:
    with pytest.raises(PixelError, match=message):
        session_of()(change(images))


def test_other_inputs_are_passed_by_name(images: torch.Tensor) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Mul", ["flat", "factor"], ["logits"]),
    ]
    model = model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 3, 8, 8]), ("factor", FLOAT, [1])],
        outputs=[("logits", FLOAT, ["N", 3])],
    )
    options: dict[str, Any] = {"image_shape": (3, 8, 8), "providers": [CPU], "input": "images"}
    session = purifier.guard(model, "identity", feed={"factor": np.ones(1, np.float32)}, **options)
    once = session(images)
    torch.testing.assert_close(session(images, factor=torch.full((1,), 3.0)), 3 * once)
    torch.testing.assert_close(session(images, factor=np.full(1, 2, np.float32)), 2 * once)


def test_outputs_that_are_no_tensors_come_as_from_run(images: torch.Tensor) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
        helper.make_node("SequenceConstruct", ["logits"], ["all"]),
    ]
    sequence = helper.make_value_info(
        "all", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    )
    model = model_of(nodes, inputs=[("images", FLOAT, ["N", 3, 8, 8])], outputs=[("logits", FLOAT, ["N", 3])])
    model.graph.output.append(sequence)
    logits, many = purifier.guard(model, "identity", providers=[CPU], output="logits")(images)
    assert isinstance(logits, np.ndarray) and isinstance(many, list)


def test_a_session_says_where_its_nodes_run(images: torch.Tensor) -> None:
    session = session_of()
    assert set(session.placement()) == {CPU} and session.placement()[CPU] >= 3
    options = onnxruntime.SessionOptions()
    with pytest.raises(ConfigError, match=f"placement: the session's options do not record it.*{RECORD_PLACEMENT}"):
        session_of(sess_options=options).placement()
    options.add_session_config_entry(RECORD_PLACEMENT, "1")
    assert session_of(sess_options=options).placement()[CPU] >= 3


def test_any_session_runs_on_tensors(images: torch.Tensor) -> None:
    plain = onnxruntime.InferenceSession(linear().SerializeToString(), providers=[CPU])
    (found,) = run_on_tensors(plain, ["logits"], {"images": images})
    np.testing.assert_array_equal(found, plain.run(None, {"images": images.numpy()})[0])
    assert device_of(plain) == torch.device("cpu")


def test_fixed_memory_answers_every_shape_and_thread() -> None:
    plain = onnxruntime.InferenceSession(linear().SerializeToString(), providers=[CPU])
    fixed = FixedMemory(plain)
    batches = [torch.rand(count, 3, 8, 8) for count in (1, 4, 1, 4, 4, 2)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: fixed.run(["logits"], {"images": images})[0], batches))
    for images, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, plain.run(None, {"images": images.numpy()})[0], rtol=1e-5, atol=1e-6)
    assert not captures(plain)
