"""Operators that ONNX Runtime's optimisers write in place of several of ONNX's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import MICROSOFT, Call, operator
from .attention import heads, scaled_dot_product
from .convolution import convolution
from .linear import gemm
from .normalisation import group_normalization, layer_normalization, rms_normalization
from .pooling import max_pool


def activation(name: str, parameters: list[float]) -> Callable[[Tensor], Tensor]:
    """An activation that is fused into another operator; none if it has no name."""
    first, second = [*parameters, 0.0, 0.0][:2]
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda given: given,
        "Relu": functional.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda given: functional.leaky_relu(given, first),
        "Clip": lambda given: given.clamp(first, second),
        "HardSigmoid": lambda given: (given * first + second).clamp(0, 1),
        "HardSwish": functional.hardswish,
    }
    if name not in known:
        raise ValueError(f"the fused activation {name} is not supported")
    return known[name]


def nhwc(call: Call) -> Call:
    """A function of images NCHW for images NHWC."""

    def run(images: Tensor, *others: Any) -> Tensor:
        made: Tensor = call(images.movedim(-1, 1), *others)
        return made.movedim(1, -1)

    return run


@operator("FusedConv", "NhwcFusedConv", domain=MICROSOFT)
def fused_conv(node: Node) -> Call:
    convolve = convolution(node)
    act = activation(node.text("activation"), node.numbers("activation_params"))
    last = node.op_type.startswith("Nhwc")

    def run(images: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        made = convolve(images.movedim(-1, 1) if last else images, weight, bias)
        made = made.movedim(1, -1) if last else made
        return act(made if added is None else made + added)

    return run


@operator("NhwcConv", domain=MICROSOFT)
def nhwc_conv(node: Node) -> Call:
    return nhwc(convolution(node))


@operator("NhwcMaxPool", domain=MICROSOFT, quantised="first")
def nhwc_max_pool(node: Node) -> Call:
    return nhwc(max_pool(node))


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(node: Node) -> Call:
    names = [name for name in ("activation_alpha", "activation_beta") if node.has(name)]
    act, product = activation(node.text("activation"), [node.number(name) for name in names]), gemm(node)
    return lambda *given: act(product(*given))


@operator("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(node: Node) -> Call:
    alpha = node.number("alpha", 1.0)
    turned = [bool(node.integer("transA")), bool(node.integer("transB"))]
    batch = [bool(node.integer("transBatchA")), bool(node.integer("transBatchB"))]
    numbers = [node.number(f"activation_{name}") for name in ("alpha", "beta") if node.has(f"activation_{name}")]
    act = activation(node.text("activation"), numbers)

    def laid(given: Tensor, is_turned: bool, by_batch: bool) -> Tensor:
        if by_batch:  # the first axis stands before the last two
            given = given.movedim(0, -2)
        return given.mT if is_turned and given.ndim > 1 else given

    def run(first: Tensor, second: Tensor) -> Tensor:
        made = laid(first, turned[0], batch[0]) @ laid(second, turned[1], batch[1])
        return act(made if alpha == 1 else made * alpha)

    return run


def _gelu(exact: bool) -> Callable[[Node], Call]:
    approximate = "none" if exact else "tanh"

    def build(node: Node) -> Call:
        def run(given: Tensor, bias: Tensor | None = None) -> Tensor:
            return functional.gelu(given if bias is None else given + bias, approximate=approximate)

        return run

    return build


operator("Gelu", "BiasGelu", domain=MICROSOFT)(_gelu(True))
operator("FastGelu", domain=MICROSOFT)(_gelu(False))


@operator("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(node: Node) -> Call:
    gelu = _gelu(False)(node)
    return lambda given, weight, bias=None: gelu(given @ weight, bias)


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(node: Node) -> Call:
    axis = node.integer("axis", 1)
    if not node.integer("is_inner_broadcast", 1):
        raise ValueError("BiasSoftmax with is_inner_broadcast=0 is not supported")

    def run(given: Tensor, bias: Tensor) -> Tensor:
        summed = given + bias
        return torch.softmax(summed.flatten(axis % given.ndim), -1).reshape(summed.shape)

    return run


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(node: Node) -> Call:
    return lambda given, bias, skip: given + bias + skip


@operator("LayerNormalization", domain=MICROSOFT)
def microsoft_layer_normalization(node: Node) -> Call:
    return layer_normalization(node)


@operator("SimplifiedLayerNormalization")
def simplified_layer_normalization(node: Node) -> Call:
    norm, epsilon = rms_normalization(node), node.number("epsilon", 1e-5)
    if not any(node.outputs[1:]):
        return norm

    def run(given: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return norm(given, scale), torch.rsqrt(given.square().mean(-1, keepdim=True) + epsilon)

    return run


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(node: Node) -> Call:
    epsilon, simplified = node.number("epsilon", 1e-12), "Simplified" in node.op_type
    several = any(node.outputs[1:])

    def run(given: Tensor, skip: Tensor, scale: Tensor, *more: Any) -> Any:
        shift, bias = ([None, *more] if simplified else [*more, None, None])[:2] if more else (None, None)
        summed = given + skip
        summed = summed if bias is None else summed + bias
        if simplified:
            made = summed * torch.rsqrt(summed.square().mean(-1, keepdim=True) + epsilon) * scale
        else:
            made = functional.layer_norm(summed, summed.shape[-1:], scale, shift, epsilon)
        return (made, None, None, summed) if several else made

    return run


@operator("GroupNorm", domain=MICROSOFT)
def group_norm(node: Node) -> Call:
    norm = group_normalization(
        Node(
            "GroupNormalization",
            "",
            21,
            node.inputs,
            node.outputs,
            {**node.attributes, "num_groups": node.integer("groups")},
        )
    )
    silu, last = bool(node.integer("activation")), bool(node.integer("channels_last", 1))
    call = nhwc(norm) if last else norm
    return lambda *given: functional.silu(call(*given)) if silu else call(*given)


def _key_mask(mask: Tensor, rows: int, columns: int) -> Tensor:
    """What a ``mask_index`` of any of its shapes lets each query see, bool (N or 1, 1, L or 1, S)."""
    steps = torch.arange(columns, device=mask.device)
    if mask.ndim == 1:  # where each sequence ends, and then, if there are twice as many, where it begins
        ends, *starts = torch.split(mask, rows)
        seen = steps < ends[:, None]
        if starts:
            seen = seen & (steps >= starts[0][:, None])
        return seen[:, None, None]
    seen = mask != 0
    return seen[:, None, None] if mask.ndim == 2 else seen[:, None] if mask.ndim == 3 else seen


def attend(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Any, bias: Any) -> Tensor:
    """Attention with the masks of ONNX Runtime: (N, H, L, D) each -> (N, L, H * D)."""
    scale = node.number("scale") or 1 / math.sqrt(query.shape[-1])
    rows, columns = query.shape[-2], key.shape[-2]
    lowest = node.number("mask_filter_value", -10000.0)
    added = bias
    if mask is not None:
        hidden = torch.where(_key_mask(mask, len(query), columns), 0.0, lowest).to(query.dtype)
        added = hidden if added is None else added + hidden
    if node.integer("unidirectional"):
        causal = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        future = torch.where(causal, 0.0, -math.inf).to(query.dtype)
        added = future if added is None else added + future
    return scaled_dot_product(query, key, value, added, scale).transpose(1, 2).flatten(2)


@operator("Attention", domain=MICROSOFT, blind=(3,))
def microsoft_attention(node: Node) -> Call:
    count, sizes = node.integer("num_heads"), node.integers("qkv_hidden_sizes")
    if node.integer("do_rotary") or node.given(6):
        raise ValueError("Attention with rotary embeddings or a shared past is not supported")
    several = any(node.outputs[1:])

    def run(
        given: Tensor, weight: Tensor, bias: Any = None, mask: Any = None, past: Any = None, added: Any = None
    ) -> Any:
        mixed = given @ weight
        mixed = mixed if bias is None else mixed + bias
        widths = sizes or [mixed.shape[-1] // 3] * 3
        query, key, value = (heads(part, count) for part in mixed.split(widths, -1))
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        made = attend(node, query, key, value, mask, added)
        return (made, torch.stack([key, value])) if several else made

    return run


@operator("MultiHeadAttention", domain=MICROSOFT, blind=(4,))
def multi_head_attention(node: Node) -> Call:
    count, several = node.integer("num_heads"), any(node.outputs[1:])
    if node.given(8) or node.given(9) or any(node.outputs[3:]):
        raise ValueError("MultiHeadAttention with a shared past is not supported")

    def run(
        query: Tensor,
        key: Any = None,
        value: Any = None,
        bias: Any = None,
        mask: Any = None,
        added: Any = None,
        past_key: Any = None,
        past_value: Any = None,
    ) -> Any:
        if query.ndim == 5:  # (N, L, H, 3, D)
            parts = [part.transpose(1, 2) for part in query.unbind(3)]
        elif key.ndim == 5:
            parts = [heads(query, count), *(part.transpose(1, 2) for part in key.unbind(3))]
        else:
            parts = [part if part.ndim == 4 else heads(part, count) for part in (query, key, value)]
        if bias is not None:
            own = bias.split([part.shape[1] * part.shape[3] for part in parts])
            parts = [
                part + shift.reshape(part.shape[1], 1, part.shape[3]) for part, shift in zip(parts, own, strict=True)
            ]
        if past_key is not None:
            parts[1:] = [torch.cat([past_key, parts[1]], 2), torch.cat([past_value, parts[2]], 2)]
        made = attend(node, parts[0], parts[1], parts[2], mask, added)
        return (made, *parts[1:]) if several else made

    return run


@operator("Trilu", domain=MICROSOFT, host=(1,))
def trilu(node: Node) -> Call:
    upper = bool(node.integer("upper", 1))

    def run(given: Tensor, diagonal: Any = None) -> Tensor:
        place = 0 if diagonal is None else int(diagonal)
        return given.triu(place) if upper else given.tril(place)

    return run


@operator("Inverse", domain=MICROSOFT)
def inverse(node: Node) -> Call:
    call: Call = torch.linalg.inv
    return call
