"""The whole model: an encoder and a projection head per modality, and what the objective adds to them.

That is a fusion and a prediction head if it is supervised, with blended losses also a prediction head per modality;
else the temperature if it is learnt.

Between an encoder and its head is an adapter, if the blocks present do not have the whole encoder's width. The names in
its `state_dict` are the canonical names of tensors: `image.blocks.3.attn.qkv.weight`, `text.projection...`.

An example need not have every modality. What it lacks is not encoded, and its projection is zero where projections are
fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lwfed.models.families import fusion_of
from lwfed.models.heads import PredictionHead, ProjectionHead, Temperature
from lwfed.models.protocol import Encoder, LastBlock, State
from lwfed.models.slots import Slots
from lwfed.spec.model import ModelSpec


class Multimodal(nn.Module):
    """The encoders of all modalities, with the blocks present at a stage, and the heads.

    Args:
        model: The model's spec.
        encoders: Modality -> encoder, without a projection head. Fusion and prediction head have the shapes for all of
            the spec's modalities, whichever have encoders.
        num_classes: C of the supervised objective; ignored otherwise.

    Attributes:
        modalities: Modalities with an encoder, in the order of the spec.
        trained_units: The units that `set_trained` has set; None once something else has set the mode of all modules.
    """

    def __init__(self, model: ModelSpec, *, encoders: Mapping[str, Encoder], num_classes: int | None) -> None:
        super().__init__()
        self.trained_units: tuple[str, ...] | None = None
        self.modalities = tuple(modality for modality in model.modalities if modality in encoders)
        self._fused = model.modalities
        objective, width = model.objective, model.projection.out
        if objective.kind == "supervised" and num_classes is None:
            raise ValueError("a supervised model needs the number of classes")
        for modality in self.modalities:
            encoder = encoders[modality]
            if encoder.width != encoder.whole_width:
                adapter = nn.Linear(encoder.width, encoder.whole_width, bias=False)
                encoder.adapter = nn.ModuleDict({str(len(encoder.blocks)): adapter})
            encoder.projection = ProjectionHead(encoder.whole_width, spec=model.projection)
            if model.blending is not None and objective.kind == "supervised":
                encoder.prediction = PredictionHead(width, spec=objective, num_classes=cast(int, num_classes))
            self.add_module(modality, encoder)
        self.prediction: PredictionHead | None = None
        self.temperature: Temperature | None = None
        if objective.kind == "supervised":
            self.fusion = fusion_of(objective).build(model.modalities, width=width)
            self.prediction = PredictionHead(self.fusion.width, spec=objective, num_classes=cast(int, num_classes))
        elif objective.learnable_temperature:
            self.temperature = Temperature(objective.temperature)

    @cached_property
    def slots(self) -> Slots:
        """The places of its tensors, found when they are first needed: then its structure must be final."""
        return Slots(self)

    def train(self, mode: bool = True) -> Multimodal:
        """Sets the mode of all modules."""
        self.trained_units = None
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Multimodal:
        """Sets whether all parameters need gradients."""
        self.trained_units = None
        return super().requires_grad_(requires_grad)

    def encoder(self, modality: str) -> Encoder:
        """Returns a modality's encoder."""
        return cast(Encoder, self.get_submodule(modality))

    def prefix(self, modality: str, inputs: Any, *, cut: int) -> State:
        """Passes inputs through the stem and the first `cut` blocks, which are frozen, without gradients."""
        with torch.no_grad():
            encoder = self.encoder(modality)
            return encoder.advance(encoder.embed(inputs), start=0, stop=cut)

    def head(self, modality: str) -> ProjectionHead:
        """Returns a modality's projection head."""
        return cast(ProjectionHead, self.encoder(modality).projection)

    def feature(
        self,
        modality: str,
        inputs: Any,
        *,
        cut: int = 0,
        cached_at: int | None = None,
        last_block: Mapping[str, LastBlock] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Passes inputs through a modality's encoder and its adapter, if it has one.

        Args:
            modality: The modality.
            inputs: The encoder's inputs: an image batch, token ids and mask, or log-mel frames; or the outputs of its
                frozen blocks: `tokens` [B, T, D] and optionally `mask` [B, T].
            cut: Number of leading blocks that run without gradients; with 0 the stem has gradients too.
            cached_at: Number of blocks that `tokens` have passed; None: `cut`.
            last_block: Modality -> how its last block is computed, if it is not frozen; None computes all in full.

        Returns:
            The features, which the projection head takes.
        """
        if isinstance(inputs, Mapping) and "tokens" in inputs:
            state = State(inputs["tokens"], inputs.get("mask"))
            if cached_at is not None and cached_at < cut:
                with torch.no_grad():
                    state = self.encoder(modality).advance(state, start=cached_at, stop=cut)
        elif cut:
            state = self.prefix(modality, inputs, cut=cut)
        else:
            state = self.encoder(modality).embed(inputs)
        encoder = self.encoder(modality)
        feature = encoder.feature(state, start=cut, how=(last_block or {}).get(modality, "full"))
        if encoder.width == encoder.whole_width:
            return feature
        return cast(nn.ModuleDict, encoder.adapter)[str(len(encoder.blocks))](feature)

    def project(
        self, modality: str, inputs: Any, *, cut: int = 0, last_block: Mapping[str, LastBlock] | None = None
    ) -> Float[Tensor, "B P"]:
        """Returns the projections of inputs, not normalised; see `feature` for the arguments."""
        return self.head(modality)(self.feature(modality, inputs, cut=cut, last_block=last_block))

    def classify(
        self,
        projections: Mapping[str, Float[Tensor, "_b P"]],
        *,
        rows: Mapping[str, Int64[Tensor, " _b"]] = MappingProxyType({}),
        size: int | None = None,
    ) -> Float[Tensor, "B C"]:
        """Fuses the modalities' projections and returns the classes' logits.

        Projections that are missing are zeros, which is their mean, as they leave a BatchNorm. This is zero filling as
        in FedMultimodal (Feng et al. 2023, arXiv 2306.09486), which fills the encoders' inputs instead.

        Args:
            projections: Modality -> projections; at least one modality.
            rows: Modality -> the examples that have it, for those that some lack.
            size: B; None if every example has every given modality.
        """
        if self.prediction is None:
            raise ValueError("a contrastive model has no prediction head")
        some = next(iter(projections.values()))
        zeros = some.new_zeros((some.shape[0] if size is None else size, some.shape[1]))
        filled = dict.fromkeys(self._fused, zeros) | dict(projections)
        for modality in rows.keys() & projections.keys():
            filled[modality] = zeros.index_copy(0, rows[modality].to(zeros.device), projections[modality])
        return self.prediction(self.fusion(filled))

    def classify_alone(self, modality: str, projections: Float[Tensor, "_b P"]) -> Float[Tensor, "_b C"]:
        """Returns the classes' logits by a modality's own prediction head; only models with blended losses have one."""
        return cast(PredictionHead, self.encoder(modality).prediction)(projections)

    def forward(
        self,
        inputs: Mapping[str, Any],
        *,
        cut: Mapping[str, int] | None = None,
        last_block: Mapping[str, LastBlock] | None = None,
    ) -> dict[str, Tensor]:
        """Embeds every modality of a batch that has an encoder: modality -> projections [b, P]."""
        cuts = cut or {}
        return {
            m: self.project(m, inputs[m], cut=cuts.get(m, 0), last_block=last_block)
            for m in self.modalities
            if m in inputs
        }
