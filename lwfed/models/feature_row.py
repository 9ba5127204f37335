"""Self-attention of one token alone: what the last block has to compute where the feature is one token.

Only that token's row of the last block is read, so there is one query, while keys and values are still those of all
tokens (`row`). A single query may also take the key projection into itself and leave the value projection for later
(`absorbed`): with q = W_q x_0 + b_q the score of token t is q.(W_k x_t + b_k) = (W_k^T q).x_t + q.b_k, and the output
is sum_t a_t (W_v x_t + b_v) = W_v (sum_t a_t x_t) + b_v sum_t a_t. No token is projected any more: T H D in place of
T D^2. It is the associativity of the product, the same function as attention of Vaswani et al. 2017 (arXiv 1706.03762,
equation 1); sums round differently. With dropout on the weights, sum_t a_t is not 1.

A LayerNorm before the projections is taken in too. With P = I - 1 1^T / D, which centres, it is
n(x_t) = g * P x_t r_t + c, r_t = (var x_t + eps)^(-1/2). So u.n(x_t) = P(g * u).x_t r_t + u.c, whose second term is the
same for all tokens and does not pass softmax, and sum_t a_t n(x_t) = g * P(sum_t a_t r_t x_t) + c sum_t a_t: the
normalised tokens are never made, and of every token autograd keeps x_t alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class Affine(NamedTuple):
    """A linear map: weight [A, D], bias [A] or none."""

    weight: Tensor
    bias: Tensor | None


class Projections(NamedTuple):
    """The maps of query, key and value, as views of the library's parameters."""

    query: Affine
    key: Affine
    value: Affine


def of_linears(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> Projections:
    """Takes the maps from three layers."""
    return Projections(*(Affine(layer.weight, layer.bias) for layer in (query, key, value)))


def of_fused(layer: nn.Linear) -> Projections:
    """Takes the maps from one layer that gives query, key and value, in this order."""
    biases = (None, None, None) if layer.bias is None else layer.bias.chunk(3)
    return Projections(*(Affine(weight, bias) for weight, bias in zip(layer.weight.chunk(3), biases, strict=True)))


def row_attention(
    first: Float[Tensor, "B 1 D"],
    tokens: Float[Tensor, "B T D"],
    *,
    projections: Projections,
    heads: int,
    mask: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    query_norm: nn.Module | None = None,
    key_norm: nn.Module | None = None,
) -> Float[Tensor, "B 1 A"]:
    """Attention of one token over all, keys and values projected.

    Args:
        first: The token that asks, normalised as `tokens` are.
        tokens: All tokens, that one among them.
        projections: Query, key and value.
        heads: H; a head is A / H wide.
        mask: Which tokens are real; None where all are.
        dropout: Rate on the attention weights; 0 outside of training.
        query_norm: What timm's `qk_norm` applies to each head of the query.
        key_norm: Likewise to the keys.

    Returns:
        The heads' outputs, side by side, before the output projection.
    """

    def split(rows: Tensor, projection: Affine) -> Tensor:
        return functional.linear(rows, *projection).unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key, value = (
        split(first, projections.query),
        split(tokens, projections.key),
        split(tokens, projections.value),
    )
    if query_norm is not None:
        query = query_norm(query)
    if key_norm is not None:
        key = key_norm(key)
    attended = None if mask is None else mask[:, None, None, :]
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def absorbed_attention(
    first: Float[Tensor, "B 1 D"],
    tokens: Float[Tensor, "B T D"],
    *,
    projections: Projections,
    heads: int,
    mask: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    norm: nn.LayerNorm | None = None,
) -> Float[Tensor, "B 1 A"]:
    """The same, with the key and value projections taken into the query and the output; see the module.

    Args:
        first: The token that asks, after the norm.
        tokens: All tokens, that one among them; before the norm, if it is given.
        projections: Query, key and value.
        heads: H.
        mask: Which tokens are real; None where all are.
        dropout: Rate on the attention weights; 0 outside of training.
        norm: The LayerNorm between `tokens` and the projections, with weights.

    Returns:
        The heads' outputs, side by side, before the output projection.
    """
    key_bias, value_bias = (
        None if bias is None else bias.unflatten(0, (heads, -1))
        for bias in (projections.key.bias, projections.value.bias)
    )
    query = functional.linear(first.squeeze(1), *projections.query).unflatten(-1, (heads, -1))  # [B, H, A / H]
    query = query * query.shape[-1] ** -0.5
    asked = torch.bmm(query.transpose(0, 1), _by_head(projections.key.weight, heads)).transpose(0, 1)  # [B, H, D]
    moved = None if key_bias is None else (query * key_bias).sum(-1, keepdim=True)  # [B, H, 1]
    with torch.autocast(tokens.device.type, enabled=False):
        mixed, total = _mixture(asked.to(tokens.dtype), tokens, moved=moved, mask=mask, dropout=dropout, norm=norm)
    values = torch.bmm(mixed.transpose(0, 1), _by_head(projections.value.weight, heads).transpose(1, 2)).transpose(0, 1)
    return _plus(values, value_bias, total).flatten(1).unsqueeze(1)


def _mixture(
    asked: Float[Tensor, "B H D"],
    tokens: Float[Tensor, "B T D"],
    *,
    moved: Float[Tensor, "B H 1"] | None,
    mask: Bool[Tensor, "B T"] | None,
    dropout: float,
    norm: nn.LayerNorm | None,
) -> tuple[Float[Tensor, "B H D"], Float[Tensor, "B H 1"] | None]:
    """Returns sum_t a_t n(x_t) of each head, and sum_t a_t where that is not 1.

    In the tokens' own type even under autocast: scores rounded to bf16 would be off by more than those of fused
    attention, and a second copy of the tokens would be kept.

    Args:
        asked: W_k^T q.
        tokens: x, before the norm.
        moved: q.b_k, which moves all scores alike, and so no weight: its gradient is 0.
        mask: Which tokens are real.
        dropout: Rate on the weights.
        norm: n; None: n(x) = x.
    """
    scale = None
    if norm is not None:
        asked = _centred(asked * norm.weight)
        scale = _inverse_deviation(tokens, norm.eps).unsqueeze(1)  # [B, 1, T]
    scores = torch.bmm(asked, tokens.transpose(1, 2))  # [B, H, T]
    if scale is not None:
        scores = scores * scale
    if moved is not None:
        scores = scores + moved
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf")).unsqueeze(1)
    weights = scores.softmax(-1)
    total = None
    if dropout > 0:
        weights = functional.dropout(weights, dropout)
        total = weights.sum(-1, keepdim=True)
    mixed = torch.bmm(weights if scale is None else weights * scale, tokens)
    if norm is not None:
        mixed = _plus(_centred(mixed) * norm.weight, norm.bias, total)
    return mixed, total


class InverseDeviation(torch.autograd.Function):
    """r = (var x + eps)^(-1/2) of each row, keeping no more than x; dr/dx = -r^3 (x - mean x) / D.

    `torch.var` takes several times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Tensor:
        """Maps [..., D] to [...]."""
        mean = rows.mean(-1, keepdim=True)
        variance = torch.linalg.vector_norm(rows - mean, dim=-1).square() / rows.shape[-1]
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(rows, mean, inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Maps the gradient of r to that of x."""
        rows, mean, inverse = ctx.saved_tensors
        factor = -gradients[0] * inverse**3 / rows.shape[-1]
        return (rows - mean).mul_(factor.unsqueeze(-1)), None


def _inverse_deviation(rows: Float[Tensor, "B T D"], eps: float) -> Float[Tensor, "B T"]:
    return cast(Tensor, InverseDeviation.apply(rows, eps))


def plain_norm(norm: nn.Module) -> nn.LayerNorm | None:
    """Returns a norm that `absorbed_attention` can take in: a LayerNorm over the last dimension, with weights."""
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine and len(norm.normalized_shape) == 1:
        return norm
    return None


def _by_head(weight: Float[Tensor, "A D"], heads: int) -> Float[Tensor, "H A/H D"]:
    return weight.unflatten(0, (heads, -1))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _plus(rows: Tensor, bias: Tensor | None, total: Tensor | None) -> Tensor:
    """Adds a bias as often as the attention weights sum up to: once without dropout."""
    if bias is None:
        return rows
    return rows + (bias if total is None else bias * total)
