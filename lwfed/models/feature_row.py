"""Self-attention for one token alone: all that the last block must compute if the feature is one token.

Only that token's row of the last block is read, so there is one query, while keys and values are still those of all
tokens (`row`). A single query can also absorb the key projection, and the value projection can be applied afterwards
(`absorbed`): with q = W_q x_0 + b_q the score of token t is q.(W_k x_t + b_k) = (W_k^T q).x_t + q.b_k, and the output
is sum_t a_t (W_v x_t + b_v) = W_v (sum_t a_t x_t) + b_v sum_t a_t. So no token is projected: T H D instead of T D^2.
By the associativity of the product it is the same function as the attention of Vaswani et al. 2017 (arXiv 1706.03762,
equation 1); only sums round differently. With dropout on the weights, sum_t a_t is not 1.

A LayerNorm before the projections is absorbed too. With P = I - 1 1^T / D, which centres, it is
n(x_t) = g * P x_t r_t + c, r_t = (var x_t + eps)^(-1/2). So u.n(x_t) = P(g * u).x_t r_t + u.c, whose second term is the
same for all tokens and cancels in the softmax, and sum_t a_t n(x_t) = g * P(sum_t a_t r_t x_t) + c sum_t a_t: the
normalised tokens are never computed, and autograd saves only x_t for each token.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class Affine(NamedTuple):
    """A linear map: weight [A, D], bias [A] or None."""

    weight: Tensor
    bias: Tensor | None


class Projections(NamedTuple):
    """The maps of query, key and value, as views of the library's parameters."""

    query: Affine
    key: Affine
    value: Affine


def of_linears(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> Projections:
    """Returns the maps of three layers."""
    return Projections(*(Affine(layer.weight, layer.bias) for layer in (query, key, value)))


def of_fused(layer: nn.Linear) -> Projections:
    """Returns the maps of one layer that computes query, key and value, in this order."""
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
    values: Float[Tensor, "B T V"] | None = None,
) -> Float[Tensor, "B 1 A"]:
    """Computes the attention of one token over all tokens, with projected keys and values.

    Args:
        first: The query token, normalised like `tokens`.
        tokens: All tokens, including the query token.
        projections: Query, key and value.
        heads: H; each head has width A / H.
        mask: Which tokens are real; None if all are.
        dropout: Rate on the attention weights; 0 outside of training.
        query_norm: The norm of timm's `qk_norm` for each head of the query.
        key_norm: The same for the keys.
        values: What the values are projected from; None: the tokens.

    Returns:
        The concatenated outputs of the heads, before the output projection.
    """

    def split(rows: Tensor, projection: Affine) -> Tensor:
        return functional.linear(rows, *projection).unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key, value = (
        split(first, projections.query),
        split(tokens, projections.key),
        split(tokens if values is None else values, projections.value),
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
    """Computes the same, with the key and value projections absorbed into the query and the output; see the module.

    Args:
        first: The query token, after the norm.
        tokens: All tokens, including the query token; before the norm, if there is one.
        projections: Query, key and value.
        heads: H.
        mask: Which tokens are real; None if all are.
        dropout: Rate on the attention weights; 0 outside of training.
        norm: The LayerNorm between `tokens` and the projections, with weights.

    Returns:
        The concatenated outputs of the heads, before the output projection.
    """
    key_bias, value_bias = (
        None if bias is None else bias.unflatten(0, (heads, -1))
        for bias in (projections.key.bias, projections.value.bias)
    )
    query = functional.linear(first.squeeze(1), *projections.query).unflatten(-1, (heads, -1))  # [B, H, A / H]
    query = query * query.shape[-1] ** -0.5
    absorbed = torch.bmm(query.transpose(0, 1), _by_head(projections.key.weight, heads)).transpose(0, 1)  # [B, H, D]
    shift = None if key_bias is None else (query * key_bias).sum(-1, keepdim=True)  # [B, H, 1]
    with torch.autocast(tokens.device.type, enabled=False):
        mixed, total = _mixture(absorbed.to(tokens.dtype), tokens, shift=shift, mask=mask, dropout=dropout, norm=norm)
    values = torch.bmm(mixed.transpose(0, 1), _by_head(projections.value.weight, heads).transpose(1, 2)).transpose(0, 1)
    return _add_bias(values, value_bias, total).flatten(1).unsqueeze(1)


def _mixture(
    absorbed: Float[Tensor, "B H D"],
    tokens: Float[Tensor, "B T D"],
    *,
    shift: Float[Tensor, "B H 1"] | None,
    mask: Bool[Tensor, "B T"] | None,
    dropout: float,
    norm: nn.LayerNorm | None,
) -> tuple[Float[Tensor, "B H D"], Float[Tensor, "B H 1"] | None]:
    """Returns sum_t a_t n(x_t) of each head, and sum_t a_t if that is not 1.

    Computes in the tokens' own type even under autocast: scores rounded to bf16 would be less accurate than those of
    fused attention, and autograd would save a second copy of the tokens.

    Args:
        absorbed: W_k^T q.
        tokens: x, before the norm.
        shift: q.b_k, which shifts all scores equally and so does not change the weights: its gradient is 0.
        mask: Which tokens are real.
        dropout: Rate on the weights.
        norm: n; None: n(x) = x.
    """
    scale = None
    if norm is not None:
        absorbed = _centred(absorbed * norm.weight)
        scale = _inverse_deviation(tokens, norm.eps).unsqueeze(1)  # [B, 1, T]
    scores = torch.bmm(absorbed, tokens.transpose(1, 2))  # [B, H, T]
    if scale is not None:
        scores = scores * scale
    if shift is not None:
        scores = scores + shift
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf")).unsqueeze(1)
    weights = scores.softmax(-1)
    total = None
    if dropout > 0:
        weights = functional.dropout(weights, dropout)
        total = weights.sum(-1, keepdim=True)
    mixed = torch.bmm(weights if scale is None else weights * scale, tokens)
    if norm is not None:
        mixed = _add_bias(_centred(mixed) * norm.weight, norm.bias, total)
    return mixed, total


class InverseDeviation(torch.autograd.Function):
    """r = (var x + eps)^(-1/2) of each row, saving only x, its mean and r; dr/dx = -r^3 (x - mean x) / D.

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
    """Returns a norm if `absorbed_attention` can absorb it (a LayerNorm over the last dimension with weights)."""
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine and len(norm.normalized_shape) == 1:
        return norm
    return None


def _by_head(weight: Float[Tensor, "A D"], heads: int) -> Float[Tensor, "H A/H D"]:
    return weight.unflatten(0, (heads, -1))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _add_bias(rows: Tensor, bias: Tensor | None, total: Tensor | None) -> Tensor:
    """Adds a bias times the sum of the attention weights, which is 1 without dropout."""
    if bias is None:
        return rows
    return rows + (bias if total is None else bias * total)
