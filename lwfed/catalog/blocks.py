"""Formulas for a transformer: FLOPs, and the items that autograd saves, per sample of T tokens.

D is the width, F the feed-forward width, H the number of heads. The formulas describe
`scaled_dot_product_attention` as PyTorch runs it on a CPU. The flash kernel saves its inputs, its output and H T sums,
and recomputes the scores in the backward pass (5 products for the forward pass's 2). With dropout on the scores the
plain products run instead (4 products) and save three maps of H T^2: softmax, noise, and their product. Fused kernels
on GPUs support dropout and need no such maps, so there the prediction is expected to exceed the actual use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lwfed.catalog.costs import Architecture, Count, Unit, UnitCost
from lwfed.types.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A transformer block without names.

    Attributes:
        width: D.
        feed_forward: F.
        heads: H.
        post_norm: Whether LayerNorm comes after the residual sum (DistilBERT), not before the sublayer (ViT, AST).
        dropouts: Number of dropouts with a rate above 0 outside the attention; each saves its noise, T D.
        attention_dropout: Whether the attention scores have a dropout with a rate above 0.
        masked: Whether attention takes a mask of the tokens.
    """

    width: int
    feed_forward: int
    heads: int
    post_norm: bool = False
    dropouts: int = 0
    attention_dropout: bool = False
    masked: bool = False


def block(shape: BlockShape, *, tensors: Mapping[str, TensorSpec]) -> Unit:
    """Returns a transformer block's unit.

    FLOPs: the forward pass is four D x D products and two D x F products per token, and two T x D products per token in
    the attention; the backward pass is twice the former (gradients of input and weight). At the cut, post-norm
    skips the gradient of the input of q, k, v; pre-norm does not, because its first LayerNorm's weights come before it.

    Saved items. In fp32 always: the inputs of both LayerNorms (2 T D), their means and deviations (4 T). In the
    computation's type: the inputs of q, k, v (T D, shared), q, k, v (3 T D), the attention's output (T D), the
    feed-forward's input (T D), its inner map before and after GELU (2 T F), the dropouts' noise. In post-norm the
    block's input is the input of q, k, v, in pre-norm that of the first LayerNorm: both count 8 T D + 2 T F.

    Recomputed: everything in post-norm, whose last LayerNorm saves its input; in pre-norm everything except the
    feed-forward's second product, because nothing after it is saved.

    Args:
        shape: The block's sizes.
        tensors: Its tensors.
    """
    d, f, h = shape.width, shape.feed_forward, shape.heads
    weights = 4 * d * d + 2 * d * f
    saved = Count(linear=6 * d + 2 * f + shape.dropouts * d)
    saved_fp32 = Count(linear=2 * d + 4)
    if shape.attention_dropout:
        saved += Count(square=3 * h)
    else:
        saved += Count(linear=1 if shape.masked else 0)
        saved_fp32 += Count(linear=h)
    return Unit(
        tensors=tensors,
        cost=UnitCost(
            forward=Count(linear=2 * weights, square=4 * d),
            backward=Count(linear=4 * weights, square=(8 if shape.attention_dropout else 10) * d),
            input_gradient=Count(linear=2 * 3 * d * d) if shape.post_norm else Count(),
            saved=saved,
            saved_fp32=saved_fp32,
            input=Count(linear=d),
            recomputed=Count(linear=2 * weights - (0 if shape.post_norm else 2 * d * f), square=4 * d),
            weight_copies=weights,
        ),
        variants={"row": row_cost(shape), "absorbed": absorbed_cost(shape)},
    )


def row_cost(shape: BlockShape) -> UnitCost:
    """Returns the cost of a block for its first token alone: keys and values of all tokens, everything else of one.

    FLOPs: k and v are two D x D products per token; for the one token, q and the output projection are two, and the
    feed-forward two D x F products; attention is two products of 1 x T x D.

    Saved items: for all T tokens the input of k and v, k and v (3 T D), in pre-norm the first LayerNorm's input and
    statistics too (T D + 2 T); for the one token, what the whole block saves per token.

    Args:
        shape: The block's sizes.
    """
    d, f, h = shape.width, shape.feed_forward, shape.heads
    one = 2 * d * d + 2 * d * f
    saved, saved_fp32 = _after_attention(shape)
    saved += Count(constant=2 * d, linear=3 * d)
    if not shape.post_norm:
        saved_fp32 += Count(linear=d + 2)
    if shape.attention_dropout:
        saved += Count(linear=3 * h)
    else:
        saved += Count(linear=1 if shape.masked else 0)
        saved_fp32 += Count(constant=h)
    return UnitCost(
        forward=Count(constant=2 * one, linear=4 * d * d + 4 * d),
        backward=Count(constant=4 * one, linear=8 * d * d + (8 if shape.attention_dropout else 10) * d),
        input_gradient=Count(constant=2 * d * d, linear=4 * d * d) if shape.post_norm else Count(),
        saved=saved,
        saved_fp32=saved_fp32,
        weight_copies=4 * d * d + 2 * d * f,
    )


def absorbed_cost(shape: BlockShape) -> UnitCost:
    """Returns the cost of a block for its first token alone, with the projections of keys and values absorbed.

    FLOPs: all products with weights are for one token; scores and mixture are two products of H x T x D. At the cut
    neither needs the gradients of the tokens: the first LayerNorm's weights get theirs without them.

    Saved items. In fp32: the tokens (T D), the attention's weights (H T), with dropout its noise and sums too; in
    pre-norm also the tokens' deviations (T), and per head the query multiplied by the keys' weights and the mixture
    before the LayerNorm's weights (2 H D). In the computation's type, for the one token: q, each head's mixture of
    tokens (H D), the heads' outputs, in pre-norm the normalised token. Only for the gradient of the tokens: the query,
    and the factors of deviations and noise.

    Args:
        shape: The block's sizes.
    """
    d, f, h = shape.width, shape.feed_forward, shape.heads
    weights = 4 * d * d + 2 * d * f
    saved, saved_fp32 = _after_attention(shape)
    saved += Count(constant=2 * d + h * d)
    saved_fp32 += Count(linear=d + h)
    input_saved = Count(constant=h * d)
    if shape.attention_dropout:
        saved_fp32 += Count(constant=h, linear=h)
        input_saved += Count(linear=h)
    if not shape.post_norm:
        saved += Count(constant=d)
        saved_fp32 += Count(constant=2 + 2 * h * d, linear=1)
        input_saved += Count(linear=2 * h + 1)
    return UnitCost(
        forward=Count(constant=2 * weights, linear=4 * h * d),
        backward=Count(constant=4 * weights, linear=8 * h * d),
        input_gradient=Count(constant=2 * d * d if shape.post_norm else 0, linear=4 * h * d),
        saved=saved,
        saved_fp32=saved_fp32 + input_saved,
        input_saved=input_saved,
        copies=Count(constant=d if shape.post_norm else 0),
        weight_copies=weights,
    )


def _after_attention(shape: BlockShape) -> tuple[Count, Count]:
    """Returns the items saved for the one token after the attention, in the computation's type and in fp32.

    These are the feed-forward's input, its inner map before and after GELU and the dropouts' noise; and the inputs and
    statistics of the norms after the attention, two in post-norm and one in pre-norm.
    """
    d, norms = shape.width, 2 if shape.post_norm else 1
    return Count(constant=d + 2 * shape.feed_forward + shape.dropouts * d), Count(constant=norms * (d + 2))


def transformer(
    name: str, *, depth: int, tokens: int, stem: Unit, block_unit: Unit, width: int, final_norm: bool
) -> Architecture:
    """Assembles an encoder. Reading the feature saves the last state, T D, because its gradient is one row of it."""
    units = {"stem": stem} | {f"blocks.{i}": block_unit for i in range(depth)}
    pooled = Count(linear=width)
    if final_norm:
        row = UnitCost(saved_fp32=Count(constant=width + 2))
        units["norm"] = Unit(
            norm("", width), UnitCost(saved_fp32=Count(linear=width + 2)), {"row": row, "absorbed": row}
        )
    return Architecture(
        name=name, depth=depth, width=width, tokens=tokens, units=units, pooled=pooled, pooled_row=Count(width)
    )


def patches_cost(patches: int, *, fan_in: int, width: int, pixels: int) -> UnitCost:
    """Returns the cost of a patch convolution; its input is the batch, which is not counted."""
    flops = Count(constant=2 * patches * fan_in * width)
    return UnitCost(forward=flops, backward=flops, copies=Count(constant=pixels), weight_copies=fan_in * width)


def linear(name: str, fan_in: int, fan_out: int, *, bias: bool = True) -> dict[str, TensorSpec]:
    """Returns the tensors of a linear layer."""
    weight = {f"{name}.weight": TensorSpec((fan_out, fan_in))}
    return weight | {f"{name}.bias": TensorSpec((fan_out,))} if bias else weight


def norm(name: str, width: int) -> dict[str, TensorSpec]:
    """Returns the tensors of a LayerNorm; an empty name means that it is a unit by itself."""
    prefix = f"{name}." if name else ""
    return {f"{prefix}weight": TensorSpec((width,)), f"{prefix}bias": TensorSpec((width,))}
