"""ViT (timm) as an encoder; its feature is the CLS token, as in the paper.

Dosovitskiy et al. 2021, arXiv 2010.11929.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, device, get_default_device, nn

from lwfed.models.feature_row import absorbed_attention, of_fused, plain_norm, row_attention
from lwfed.models.protocol import Encoder, LastBlock, Prefixes, State, require_depth
from lwfed.models.timm_config import exported_config, timm_config, timm_model
from lwfed.models.weights import normalise_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError

PREFIXES = Prefixes(stem="", blocks="blocks.", norm="norm.")
INIT_STD = 0.02
FIXED = {"num_classes": 0, "global_pool": "token"}
"""Settings of every encoder, whatever the spec: no classifier, and the CLS token as the feature."""


class ViT(Encoder):
    """A timm ViT: its stem is the library's model without blocks, norm and head, so that its names are timm's."""

    def __init__(self, model: Any, *, depth: int) -> None:
        blocks = nn.ModuleList(model.blocks[:depth])
        norm = model.norm
        model.blocks, model.norm, model.fc_norm = nn.Sequential(), nn.Identity(), nn.Identity()
        super().__init__(model, blocks=blocks, width=model.num_features, init_std=INIT_STD)
        self.norm = norm

    def embed(self, inputs: Float[Tensor, "B 3 H W"]) -> State:
        stem: Any = self.stem
        tokens = stem.norm_pre(stem.patch_drop(stem._pos_embed(stem.patch_embed(inputs))))
        return State(tokens, None)

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens = state.tokens
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens)
        return State(tokens, None)

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        block: Any = self.blocks[index]
        if type(block) is not Block or type(block.attn) is not Attention:
            return super().advance_row(state, index=index, how=how)
        first = state.tokens[:, :1]
        first = first + block.drop_path1(block.ls1(_attention_row(block, first, state.tokens, how=how)))
        return State(first + block.drop_path2(block.ls2(block.mlp(block.norm2(first)))), None)

    def pool(self, state: State) -> Float[Tensor, "B D"]:
        return self.norm(state.tokens)[:, 0]


def _attention_row(
    block: Block, first: Float[Tensor, "B 1 D"], tokens: Float[Tensor, "B T D"], *, how: LastBlock
) -> Float[Tensor, "B 1 D"]:
    """Computes the attention of timm's block for its first token; with norms of each key (`qk_norm`), as `row`."""
    attention: Any = block.attn
    rate = attention.attn_drop.p if attention.training else 0.0
    projections = of_fused(attention.qkv)
    if how == "absorbed" and isinstance(attention.k_norm, nn.Identity):
        norm = plain_norm(block.norm1)
        if norm is None:
            tokens = block.norm1(tokens)
        normed = tokens[:, :1] if norm is None else norm(first)
        mixed = absorbed_attention(
            normed, tokens, projections=projections, heads=attention.num_heads, dropout=rate, norm=norm
        )
    else:
        tokens = block.norm1(tokens)
        normed = tokens[:, :1]
        mixed = row_attention(
            normed,
            tokens,
            projections=projections,
            heads=attention.num_heads,
            dropout=rate,
            query_norm=attention.q_norm,
            key_norm=attention.k_norm,
        )
    mixed = attention.norm(mixed)
    if attention.gate is not None:
        mixed = mixed * attention.gate(normed).sigmoid()
    return attention.proj_drop(attention.proj(mixed))


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    model = _library(encoder)
    return ViT(model, depth=require_depth(depth, whole=len(model.blocks)))


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns `image_size`, pixels per side, and `normalise`."""
    return {"image_size": _image_size(encoder), "normalise": normalise_of(encoder)}


def config(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns timm's model arguments; see `timm_config`."""
    return timm_config(encoder, fixed=FIXED)


def library_config(encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
    """Returns the config.json of an export with `depth` blocks; see `exported_config`."""
    size = _image_size(encoder)
    return exported_config(
        encoder,
        fixed=FIXED,
        arguments={**config(encoder), "img_size": size, "depth": depth},
        size=size,
        first_conv="patch_embed.proj",
        classifier="head",
    )


def adapt(encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Converts older names and resizes position embeddings and patches with timm, and drops the classifier."""
    with device("meta"):
        model = _library(encoder)
    names = set(model.state_dict())
    return {name: tensor for name, tensor in checkpoint_filter_fn(dict(tensors), model).items() if name in names}


def _image_size(encoder: EncoderSpec) -> int:
    with device("meta"):
        height, width = _library(encoder).patch_embed.img_size
    if height != width:
        raise SpecError(f"a vit of {height} x {width} pixels is not square", remedy="set `config.img_size` to a number")
    return int(height)


def _library(encoder: EncoderSpec) -> Any:
    """Builds timm's whole model on the default device; on the meta device without drawing weights, which takes long."""
    builder = "timm.models.vision_transformer.VisionTransformer"
    arguments = {**config(encoder), **FIXED}
    if get_default_device().type == "meta":
        arguments.setdefault("weight_init", "skip")
    model = timm_model(encoder, arguments, near="*vit*", builder=builder)
    if not isinstance(model, VisionTransformer) or not list(model.norm.parameters()):
        raise SpecError(
            f"{encoder.arch} is not a plain ViT with a class token and a final norm",
            remedy="use an architecture such as vit_tiny_patch16_224",
        )
    return model
