"""Branches, loops and sequences."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import ModelProto

from peers import check_agreement
from purifier.classifiers.graph.module import GraphModule

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def parsed(text: str) -> ModelProto:
    return onnx.parser.parse_model(f"{HEAD}\n{text}")


BODIES = {
    "If": """
        net (float[N, 3] image) => (float[N, 3] logits) {
            total = ReduceSum <keepdims = 0> (image)
            half = Constant <value = float {0.5}> ()
            large = Greater (total, half)
            logits = If (large) <
                then_branch = yes () => (float[N, 3] y) { y = Mul (image, image) },
                else_branch = no () => (float[N, 3] z) { z = Neg (image) }
            >
        }""",
    "Loop": """
        net (float[N, 3] image) => (float[N, 3] logits, float[K, N, 3] steps) {
            count = Constant <value = int64 {4}> ()
            going = Constant <value = bool {1}> ()
            two = Constant <value = float {2.0}> ()
            logits, steps = Loop (count, going, image) <
                body = b (int64 i, bool c, float[N, 3] s) => (bool d, float[N, 3] t, float[N, 3] u) {
                    third = Constant <value = int64 {2}> ()
                    d = Less (i, third)
                    w = Mul (s, image)
                    t = Div (w, two)
                    u = Identity (t)
                }
            >
        }""",
    "Scan": """
        net (float[N, 3] image) => (float[3] logits, float[N, 3] sums) {
            zeros = Constant <value = float[3] {0.0, 0.0, 0.0}> ()
            logits, sums = Scan <
                num_scan_inputs = 1,
                body = b (float[3] s, float[3] x) => (float[3] t, float[3] u) {
                    p = Mul (x, x)
                    t = Add (s, p)
                    u = Identity (t)
                }
            > (zeros, image)
        }""",
    "If in Loop": """
        net (float[N, 3] image) => (float[N, 3] logits) {
            count = Constant <value = int64 {3}> ()
            logits = Loop (count, , image) <
                body = b (int64 i, bool c, float[N, 3] s) => (bool d, float[N, 3] t) {
                    d = Identity (c)
                    one = Constant <value = int64 {1}> ()
                    first = Less (i, one)
                    t = If (first) <
                        then_branch = yes () => (float[N, 3] y) { y = Mul (s, image) },
                        else_branch = no () => (float[N, 3] z) { z = Sin (s) }
                    >
                }
            >
        }""",
    "sequences": """
        net (float[N, 3] image) => (float[N, 3] logits) {
            a = Neg (image)
            both = SequenceConstruct (image, a)
            place = Constant <value = int64 {1}> ()
            more = SequenceInsert (both, image, place)
            fewer = SequenceErase (more, place)
            b = SequenceAt (fewer, place)
            joined = ConcatFromSequence <axis = 1> (more)
            start = Constant <value = int64[1] {0}> ()
            end = Constant <value = int64[1] {3}> ()
            axis = Constant <value = int64[1] {1}> ()
            c = Slice (joined, start, end, axis)
            logits = Mul (b, c)
        }""",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_bodies_and_sequences_agree_with_onnx_runtime_and_have_gradients(name: str, offset: float) -> None:
    model = parsed(BODIES[name])
    given = torch.rand(2, 3, generator=torch.Generator().manual_seed(1)) * 0.1 + offset
    check_agreement(model, {"image": given.numpy()})
    module = GraphModule(model).double()
    leaf = given.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: tuple(module(value).values()), [leaf])


def test_a_branch_that_is_never_taken_needs_no_support() -> None:
    model = parsed("""
        net (float[N, 3] image) => (float[N, 3] logits) {
            yes = Constant <value = bool {1}> ()
            logits = If (yes) <
                then_branch = a () => (float[N, 3] y) { y = Neg (image) },
                else_branch = b () => (float[N, 3] z) { z = StringNormalizer (image) }
            >
        }""")
    given = torch.rand(2, 3)
    assert torch.equal(GraphModule(model)(given)["logits"], -given)
