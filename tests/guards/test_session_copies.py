from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import onnx_models
import purifier
from purifier.errors import ConfigError, PixelError, RejectedError
from purifier.guards.session import GuardedSession
from purifier.onnx.rejection import answer_name
from purifier.onnx.runtime import CPU
from purifier.output import LOGITS
from scoring_purifiers import calibrated

IMAGES = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(192, 50)).astype(np.float32)


def classifier() -> onnx.ModelProto:
    """Its weight is large enough to be set aside."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Mul", ["product", "gain"], ["logits"]),
    ]
    inputs: list[Any] = [("images", onnx_models.FLOAT, ["N", 3, 8, 8]), ("gain", onnx_models.FLOAT, [1])]
    outputs: list[Any] = [("logits", onnx_models.FLOAT, ["N", 50])]
    return onnx_models.model_of(nodes, inputs=inputs, outputs=outputs, initializers={"weight": WEIGHT})


def guarded(**options: Any) -> GuardedSession:
    return purifier.guard(classifier(), "blur", feed={"gain": np.float32([2])}, score=True, **options)


def run(session: GuardedSession, images: Any = IMAGES) -> list[Any]:
    return session.run(None, {"images": images})


def same(one: GuardedSession, other: GuardedSession) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(run(one), run(other), strict=True))


COPIES: dict[str, Callable[[GuardedSession], GuardedSession]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"protocol {n}": lambda session, n=n: pickle.loads(pickle.dumps(session, n)) for n in range(6)},  # noqa: S301
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_answers_the_same_and_outlives_the_original(
    make: Callable[[GuardedSession], GuardedSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    from purifier.onnx import front_cache

    original = guarded()
    monkeypatch.setattr(front_cache, "purifier_graph", None)  # a copy exports nothing
    made = make(original)
    assert type(made) is GuardedSession and same(made, original)
    assert made.model.SerializeToString() == original.model.SerializeToString()
    assert (made.classifier == original.classifier and made.purifier is not original.purifier) or make is copy.copy
    expected = run(original)
    del original
    assert np.array_equal(run(made)[0], expected[0])
    with pytest.raises(PixelError):
        run(made, IMAGES + 1)


def test_rejection_is_kept() -> None:
    session = purifier.guard(onnx_models.linear(), calibrated(purifier.load("blur"), 1e-12), on_reject="raise")
    with pytest.raises(RejectedError):
        pickle.loads(pickle.dumps(session)).run(None, {"images": IMAGES})  # noqa: S301


def test_providers_and_session_options_survive() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.logid = 3, "mine"
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = guarded(providers=[(CPU, {})], sess_options=options)
    made = pickle.loads(pickle.dumps(session))  # noqa: S301
    found = made.get_session_options()
    assert (found.intra_op_num_threads, found.logid) == (3, "mine")
    assert found.graph_optimization_level == options.graph_optimization_level
    assert found.execution_mode == options.execution_mode
    assert found.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert made.get_providers() == session.get_providers() and same(made, session)


def test_an_option_that_a_copy_cannot_have_is_named(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    with pytest.raises(ConfigError, match="optimized_model_filepath"):
        pickle.dumps(guarded(sess_options=options))


def test_the_users_options_are_not_changed_by_a_guard() -> None:
    options = onnxruntime.SessionOptions()
    first, second = guarded(sess_options=options), guarded(sess_options=options)
    assert same(first, second) and same(first, guarded())


def test_the_model_is_whole_and_the_classifier_unchanged() -> None:
    given = classifier()
    session = purifier.guard(given, "blur", feed={"gain": np.float32([2])}, score=True)
    assert given == classifier()
    stored = next(one for one in session.model.graph.initializer if one.name == "weight")
    assert np.array_equal(numpy_helper.to_array(stored), WEIGHT)
    onnx.checker.check_model(session.model, full_check=True)
    plain = onnxruntime.InferenceSession(session.model.SerializeToString(), providers=[CPU])
    answers = plain.run(None, {"images": IMAGES, "gain": np.float32([2])})
    assert np.array_equal(answers[0], run(session)[0])
    assert answer_name(session.model, LOGITS) == "logits"


def test_a_session_can_change_its_providers() -> None:
    session = guarded()
    expected = run(session)
    session.set_providers([CPU])
    assert np.array_equal(run(session)[0], expected[0])


@pytest.mark.parametrize("opset", [12, 18])
def test_weights_survive_a_conversion_to_a_newer_opset(opset: int) -> None:
    model = classifier()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    session = purifier.guard(model, "identity", feed={"gain": np.float32([2])})
    flat = IMAGES.reshape(3, -1)
    np.testing.assert_allclose(session.run(None, {"images": IMAGES})[0], 2 * flat @ WEIGHT, rtol=1e-4, atol=1e-4)


@pytest.mark.integration
def test_process_pools_take_sessions() -> None:
    session = guarded()
    expected = run(session)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(run, [session] * 3))
    assert all(np.array_equal(one[0], expected[0]) for one in found)


def _answer(session: GuardedSession, queue: Any) -> None:
    queue.put(run(session))


@pytest.mark.integration
def test_a_spawned_process_takes_a_session() -> None:
    context = multiprocessing.get_context("spawn")
    session, queue = guarded(), context.Queue()
    process = context.Process(target=_answer, args=(session, queue))
    process.start()
    found = queue.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0 and np.array_equal(found[0], run(session)[0])
