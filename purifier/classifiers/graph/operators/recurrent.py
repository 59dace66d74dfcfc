"""RNN, GRU and LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import Call, operator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Elu": functional.elu,
    "HardSigmoid": lambda given: (0.2 * given + 0.5).clamp(0, 1),
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}
Cell = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""From the weighted input of a step and the states to the new states, of which the first is the output."""


def _activations(node: Node, direction: int, default: Sequence[str]) -> list[Callable[[Tensor], Tensor]]:
    if node.has("activation_alpha") or node.has("activation_beta"):
        raise ValueError("activations with parameters are not supported")
    names = [name.decode() for name in node.attributes.get("activations", [])]
    chosen = names[direction * len(default) : (direction + 1) * len(default)] or default
    return [ACTIVATIONS[name] for name in chosen]


def _recurrent(node: Node, gates: int, states: int, default: Sequence[str], cell: Callable[..., Cell]) -> Call:
    way, by_batch = node.text("direction", "forward"), bool(node.integer("layout"))
    hidden = node.integer("hidden_size")
    clip = node.number("clip") if node.has("clip") else None

    def run(given: Tensor, weights: Tensor, repeated: Tensor, *more: Any) -> tuple[Tensor, ...]:
        biases, lengths, *first = [*more, *[None] * (6 - len(more))][: 2 + states] if more else [None] * (2 + states)
        peepholes = more[4] if states == 2 and len(more) > 4 else None
        steps = given.transpose(0, 1) if by_batch else given
        outputs, finals = [], []
        for place in range(weights.shape[0]):
            backwards = way == "reverse" or place == 1
            start = [
                steps.new_zeros(steps.shape[1], hidden)
                if value is None
                else (value[:, place] if by_batch else value[place])
                for value in first
            ]
            bias = None if biases is None else biases[place]
            made = cell(
                node,
                repeated[place],
                None if bias is None else bias[gates * hidden :],
                _activations(node, place, default),
                clip,
                None if peepholes is None else peepholes[place],
            )
            inputs = functional.linear(steps, weights[place], None if bias is None else bias[: gates * hidden])
            output, final = _unrolled(made, inputs, tuple(start), lengths, backwards)
            outputs.append(output)
            finals.append(final)
        whole = torch.stack(outputs, 1)  # (steps, directions, batch, hidden)
        lasts = [torch.stack(parts, 0) for parts in zip(*finals, strict=True)]
        if by_batch:
            return whole.permute(2, 0, 1, 3), *(last.transpose(0, 1) for last in lasts)
        return whole, *lasts

    return run


def _unrolled(
    cell: Cell, inputs: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs (steps, batch, hidden), zero where a sequence has ended, and the last states."""
    outputs: dict[int, Tensor] = {}
    order = range(len(inputs) - 1, -1, -1) if backwards else range(len(inputs))
    for step in order:
        new = cell(inputs[step], state)
        if lengths is not None:
            going = (step < lengths).reshape(-1, 1).to(inputs.device)
            outputs[step] = torch.where(going, new[0], 0.0)
            new = tuple(torch.where(going, after, before) for after, before in zip(new, state, strict=True))
        else:
            outputs[step] = new[0]
        state = new
    return torch.stack([outputs[step] for step in range(len(inputs))]), state


def _limited(given: Tensor, clip: float | None) -> Tensor:
    return given if clip is None else given.clamp(-clip, clip)


@operator("RNN", blind=(4,))
def rnn(node: Node) -> Call:
    def cell(_: Node, repeated: Tensor, bias: Any, activations: Any, clip: Any, __: Any) -> Cell:
        def step(given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (activations[0](_limited(given + functional.linear(state[0], repeated, bias), clip)),)

        return step

    return _recurrent(node, 1, 1, ["Tanh"], cell)


@operator("GRU", blind=(4,))
def gru(node: Node) -> Call:
    def cell(node: Node, repeated: Tensor, bias: Any, activations: Any, clip: Any, __: Any) -> Cell:
        hidden, after = node.integer("hidden_size"), bool(node.integer("linear_before_reset"))
        both = bias if bias is not None else repeated.new_zeros(3 * hidden)
        gate, act = activations

        def step(given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            past = state[0]
            mixed = functional.linear(past, repeated[: 2 * hidden], both[: 2 * hidden])
            update, reset = gate(_limited(given[:, : 2 * hidden] + mixed, clip)).split(hidden, 1)
            last, own = repeated[2 * hidden :], both[2 * hidden :]
            inner = reset * functional.linear(past, last, own) if after else functional.linear(reset * past, last, own)
            new = act(_limited(given[:, 2 * hidden :] + inner, clip))
            return ((1 - update) * new + update * past,)

        return step

    return _recurrent(node, 3, 1, ["Sigmoid", "Tanh"], cell)


@operator("LSTM", blind=(4,))
def lstm(node: Node) -> Call:
    def cell(node: Node, repeated: Tensor, bias: Any, activations: Any, clip: Any, peepholes: Any) -> Cell:
        gate, act, out = activations
        coupled = bool(node.integer("input_forget"))
        peeps = [0.0] * 3 if peepholes is None else peepholes.split(node.integer("hidden_size"))

        def step(given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            past, memory = state
            parts = (given + functional.linear(past, repeated, bias)).chunk(4, 1)
            entry = gate(_limited(parts[0] + peeps[0] * memory, clip))
            forget = 1 - entry if coupled else gate(_limited(parts[2] + peeps[2] * memory, clip))
            kept = forget * memory + entry * act(_limited(parts[3], clip))
            shown = gate(_limited(parts[1] + peeps[1] * kept, clip))
            return shown * out(kept), kept

        return step

    general = _recurrent(node, 4, 2, ["Sigmoid", "Tanh", "Tanh"], cell)
    unusual = ("activations", "clip", "input_forget", "layout")
    if any(node.has(name) for name in unusual) or node.given(4) or node.given(7) or node.text("direction") == "reverse":
        return general
    return _by_torch(node)


def _by_torch(node: Node) -> Call:
    """The usual LSTM, by torch's own, which has the gates in another order."""
    hidden = node.integer("hidden_size")

    def run(given: Tensor, weights: Tensor, repeated: Tensor, *more: Any) -> tuple[Tensor, ...]:
        bias, _, first, memory = [*more, *[None] * (4 - len(more))][:4]
        parts = [weights, repeated, *([] if bias is None else torch.split(bias, 4 * hidden, 1))]
        turned = [_reordered(part, hidden) for part in parts]
        flat = [part[place] for place in range(len(weights)) for part in turned]
        start = given.new_zeros(len(weights), given.shape[1], hidden)
        state = [start if value is None else value for value in (first, memory)]
        output, last, kept = torch.lstm(given, state, flat, bias is not None, 1, 0.0, False, len(weights) == 2, False)
        return output.reshape(*output.shape[:2], len(weights), hidden).transpose(1, 2), last, kept

    return run


def _reordered(weight: Tensor, hidden: int) -> Tensor:
    """Gates of input, output, forget, cell as input, forget, cell, output."""
    entry, out, forget, cell = torch.split(weight, hidden, 1)
    return torch.cat([entry, forget, cell, out], 1)
