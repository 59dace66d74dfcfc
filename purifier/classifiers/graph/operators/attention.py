"""Attention of ONNX, opsets 23 and later."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..node import Node
from ..table import Call, operator
from ..types import FLOATS, float_type


def heads(given: Tensor, count: int) -> Tensor:
    """(N, L, H * D) -> (N, H, L, D)."""
    return given.reshape(*given.shape[:-1], count, given.shape[-1] // count).transpose(1, 2)


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(N, H, L, D) each -> (N, H, L, D); ``mask`` is added, or says where to look."""
    if query.dtype in (torch.float16, torch.bfloat16) and query.device.type == "cpu":
        # torch rounds more often there than ONNX Runtime, which computes in float32.
        own = None if mask is None or mask.dtype == torch.bool else mask.float()
        parts = query.float(), key.float(), value.float(), mask if own is None else own
        return functional.scaled_dot_product_attention(*parts, scale=scale).to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)


@operator("Attention", since=23)
def attention(node: Node) -> Call:
    causal, softcap = bool(node.integer("is_causal")), node.number("softcap")
    shown, wanted = node.integer("qk_matmul_output_mode"), len(node.outputs) > 3 and bool(node.outputs[3])
    precision = node.attributes.get("softmax_precision")
    several = any(node.outputs[1:])
    after = node.integer("right_window_size", -1)
    window = node.integer("left_window_size", -1), 0 if causal else after

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any = None,
        past_key: Any = None,
        past_value: Any = None,
        lengths: Any = None,
    ) -> Any:
        flat = query.ndim == 3
        if flat:
            query = heads(query, node.integer("q_num_heads"))
            key, value = (heads(part, node.integer("kv_num_heads")) for part in (key, value))
        if past_key is not None:
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        present = key, value
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        scale = node.number("scale", 1 / math.sqrt(query.shape[-1]))
        past = 0 if past_key is None else past_key.shape[2]
        bias = _bias(query, key, mask, past, lengths, window)
        if softcap or wanted or (precision is not None and float_type(precision) != query.dtype):
            made, scores = _in_steps(query, key, value, bias, scale)
        else:
            # Rows that may look nowhere give zeros in ONNX, as here.
            made, scores = scaled_dot_product(query, key, value, bias, scale), None
        made = made.transpose(1, 2).flatten(2) if flat else made
        return (made, *present, scores) if several else made

    def _in_steps(query: Tensor, key: Tensor, value: Tensor, bias: Any, scale: float) -> tuple[Tensor, Tensor]:
        root = math.sqrt(scale)
        scores = (query * root) @ (key * root).mT
        seen = [scores, scores, scores, scores]
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        seen[1] = scores
        if bias is not None:
            scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
        seen[2] = scores
        dtype = float_type(precision) if precision in FLOATS else scores.dtype
        shares = torch.softmax(scores.to(dtype), -1).to(scores.dtype)
        shares = torch.where((scores == -math.inf).all(-1, keepdim=True), torch.zeros_like(shares), shares)
        seen[3] = shares
        return shares @ value, seen[shown]

    return run


def _bias(
    query: Tensor, key: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None, window: tuple[int, int]
) -> Tensor | None:
    """One mask of what may be seen, or what is added: the graph's, of a window, and of keys that are padding."""
    rows, columns = query.shape[2], key.shape[2]
    if mask is not None and mask.shape[-1] < columns:
        fill = False if mask.dtype == torch.bool else -math.inf
        mask = functional.pad(mask, (0, columns - mask.shape[-1]), value=fill)
    seen = _window(rows, columns, past, lengths, window, query.device)
    if seen is None:
        return mask
    if mask is None:
        return seen
    if mask.dtype == torch.bool:
        return mask & seen
    return torch.where(seen, mask, torch.full((), -math.inf, dtype=mask.dtype, device=mask.device))


def _window(
    rows: int, columns: int, past: int, lengths: Tensor | None, window: tuple[int, int], device: torch.device
) -> Tensor | None:
    """Which keys each query may see, bool (N or 1, 1, rows or 1, columns); None for all. -1 is no bound."""
    steps = torch.arange(columns, device=device)
    seen: list[Tensor] = [] if lengths is None else [steps < lengths.reshape(-1, 1, 1, 1)]
    if window != (-1, -1):
        # With lengths, the last rows of the query are the last of the keys that are not padding.
        first = (
            torch.full((1, 1, 1, 1), past, device=device) if lengths is None else (lengths - rows).reshape(-1, 1, 1, 1)
        )
        places = torch.arange(rows, device=device).reshape(1, 1, -1, 1) + first
        if window[0] >= 0:
            seen.append(steps >= places - window[0])
        if window[1] >= 0:
            seen.append(steps <= places + window[1])
    return functools.reduce(torch.logical_and, seen) if seen else None
