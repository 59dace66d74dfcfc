"""Random numbers of a graph: their distribution, and that a seed repeats them."""

from __future__ import annotations

import onnx
import pytest
import torch

from purifier.classifiers.graph.module import GraphModule

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
LIKE = torch.full((20_000,), 0.3)
NODES = {
    "normal": ("RandomNormal <shape = [20000], mean = 2.0, scale = 3.0, seed = 1.0> ()", 2.0, 3.0),
    "uniform": ("RandomUniform <shape = [20000], low = 1.0, high = 4.0, seed = 1.0> ()", 2.5, 3 / 12**0.5),
    "normal like": ("RandomNormalLike <seed = 1.0> (image)", 0.0, 1.0),
    "uniform like": ("RandomUniformLike <seed = 1.0> (image)", 0.5, 12**-0.5),
    "Bernoulli": ("Bernoulli <seed = 1.0> (image)", 0.3, 0.21**0.5),
}


def made(node: str) -> GraphModule:
    text = f"net (float[N] image) => (float[N] logits) {{ y = {node} logits = Add (y, image) }}"
    return GraphModule(onnx.parser.parse_model(f"{HEAD}\n{text}"))


@pytest.mark.parametrize("name", NODES)
def test_numbers_have_their_mean_and_spread_and_repeat_with_a_seed(name: str) -> None:
    node, mean, spread = NODES[name]
    module = made(node)
    found = module(LIKE)["logits"] - LIKE
    assert abs(float(found.mean()) - mean) < 0.05 * spread
    assert abs(float(found.std()) - spread) < 0.05 * spread
    assert torch.equal(module(LIKE)["logits"] - LIKE, found)


def test_numbers_differ_from_call_to_call_without_a_seed() -> None:
    module = made("RandomNormalLike (image)")
    assert not torch.equal(module(LIKE)["logits"], module(LIKE)["logits"])


def test_dropout_in_training_mode_keeps_the_mean() -> None:
    body = """
        share = Constant <value = float {0.25}> ()
        yes = Constant <value = bool {1}> ()
        logits, kept = Dropout (image, share, yes)"""
    text = f"net (float[N] image) => (float[N] logits, bool[N] kept) {{ {body} }}"
    found = GraphModule(onnx.parser.parse_model(f"{HEAD}\n{text}"))(LIKE)
    assert abs(float(found["kept"].float().mean()) - 0.75) < 0.02
    assert torch.equal(found["logits"], torch.where(found["kept"], LIKE / 0.75, 0.0))


def test_classes_are_drawn_by_their_probabilities() -> None:
    text = "net (float[N, 3] image) => (int32[N, M] logits) { logits = Multinomial <sample_size = 20000> (image) }"
    logits = torch.tensor([[0.1, 0.6, 0.3]]).log()
    found = GraphModule(onnx.parser.parse_model(f"{HEAD}\n{text}"))(logits)["logits"]
    shares = torch.bincount(found[0].long()) / 20_000
    assert torch.allclose(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.02)
