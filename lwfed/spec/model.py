"""The model section: one encoder per modality, their projection heads, and the objective that joins them."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lwfed.catalog import names
from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.fusion import fusion_kind
from lwfed.spec.base import LATER, Choice, Section
from lwfed.types.modalities import of_kind, retrieval_task

FAMILIES = "; ".join(f"{name}: {encoder_family(name).usage.what}" for name in names("encoders"))
"""Description of each family."""


class NormaliseSpec(Section):
    """How an encoder's inputs are normalised."""

    mean: tuple[float, ...] = Field(description="per channel: three for images, one for sounds")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="per channel")


class EncoderSpec(Section):
    """One modality's encoder."""

    family: Annotated[str, Choice("encoders")] = Field(description=FAMILIES)
    arch: str | None = Field(
        None, description="name of the library's architecture, such as vit_tiny_patch16_224; for families with several"
    )
    weights: str | None = Field(None, description="pretrained weights: a folder, a file or a hub id; null: seeded")
    fresh_norm: Annotated[bool, LATER] = Field(
        False, description="start the final norm at one and zero, and take only the rest from `weights`"
    )
    tokenizer: str | None = Field(
        None, description="text: a folder, a hub id or `bytes` (no file needed); null: that of `weights`, else bytes"
    )
    normalise: NormaliseSpec | None = Field(
        None, description="image, audio: mean and std of inputs; null: those of `weights`, else the family's"
    )
    max_tokens: int = Field(40, ge=2, description="text: captions are truncated to this many tokens")
    blocks_per_stage: int | tuple[int, ...] = Field(1, description="blocks appended per stage: one number, or a list")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="overrides of the architecture, with timm.create_model's or transformers' names",
    )

    @model_validator(mode="after")
    def _fits_its_family(self) -> Self:
        family = encoder_family(self.family)
        family.check(self)
        family.check_types(self.config)
        if self.fresh_norm and not family.final_norm:
            raise ValueError(f"`fresh_norm` is not for {self.family}, which has no final norm")
        if self.normalise is not None:
            if family.normalise is None:
                raise ValueError(f"`normalise` is not for {self.family}, whose inputs are not normalised")
            channels = len(family.normalise.mean)
            if {len(self.normalise.mean), len(self.normalise.std)} != {channels}:
                raise ValueError(f"`normalise` of a {self.family} needs {channels} of each of mean and std")
        return self

    def blocks_at(self, stage: int) -> int:
        """Returns the number of blocks appended at a stage (counted from 1)."""
        if isinstance(self.blocks_per_stage, int):
            return self.blocks_per_stage
        return self.blocks_per_stage[stage - 1]


class ProjectionSpec(Section):
    """The projection head of each modality: hidden layers with BatchNorm, and an output BatchNorm without affine."""

    hidden: int = Field(4096, ge=1, description="width of the hidden layers")
    out: int = Field(256, ge=1, description="width P of the embedding")
    layers: int = Field(3, ge=1, le=100, description="number of linear layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each hidden linear layer")


_Weights = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class AlignmentSpec(Section):
    """Alignment with the received heads: each projection stays near the one by its head as the client received it."""

    weight: float = Field(
        gt=0,
        allow_inf_nan=False,
        description="w: the loss gains w times the sum over modalities of 1 - the mean cosine",
    )


Alignment = Annotated[
    AlignmentSpec | None, LATER, Field(description="{weight: w} keeps projections near those of the received heads")
]


class BlendingSpec(Section):
    """Hierarchical gradient blending: a head per modality besides the fused one, and weights of losses and clients."""

    clients: bool = Field(
        True, description="weight the clients' updates too, by what each gained for how much it overfitted"
    )
    least_weight: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="each weight is at least this, where 1 is that of the plain sum; 0: the ratios alone",
    )
    least_overfitting: float = Field(
        0.01, gt=0, allow_inf_nan=False, description="a smaller change of the overfitting counts as this one, in nats"
    )


LEAST_TEMPERATURE = 0.01
"""Smallest temperature that training can reach (CLIP, arXiv 2103.00020, section 2.5)."""


class ContrastiveSpec(Section):
    """Instance discrimination: symmetric InfoNCE over every pair of modalities."""

    kind: Literal["contrastive"] = "contrastive"
    temperature: float = Field(0.05, gt=0, description="divides the cosine similarities")
    learnable_temperature: Annotated[bool, LATER] = Field(
        False, description=f"train the temperature, from `temperature` on and never below {LEAST_TEMPERATURE}"
    )
    alignment: Alignment = None

    @model_validator(mode="after")
    def _starts_within_reach(self) -> Self:
        if self.learnable_temperature and self.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"`temperature` {self.temperature:g} is below {LEAST_TEMPERATURE}, the least of a learnable temperature"
            )
        return self


class SupervisedSpec(Section):
    """Classification of fused modalities with cross-entropy."""

    kind: Literal["supervised"] = "supervised"
    fusion: Annotated[str, Choice("fusions")] = Field("concat", description="how the projections are joined")
    hidden: int = Field(256, ge=1, description="width of the prediction head")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the prediction head")
    label_smoothing: Annotated[float, LATER] = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread evenly over all classes, in training"
    )
    class_weights: Annotated[Literal["balanced"] | _Weights | None, LATER] = Field(
        None,
        description="weight of each class's examples in training: a list in the order of the classes, or `balanced`: "
        "inverse to the class's number of training examples, with a mean of 1 over the examples",
    )
    alignment: Alignment = None
    blending: Annotated[BlendingSpec | None, LATER] = Field(
        None,
        description="{}: heads that see one modality each, whose losses are weighted by what they gained on held-out "
        "examples for how much they overfitted",
    )


ObjectiveSpec = Annotated[ContrastiveSpec | SupervisedSpec, Field(discriminator="kind")]


class ModelSpec(Section):
    """The whole model."""

    encoders: dict[str, EncoderSpec] = Field(
        default_factory=lambda: {
            "image": EncoderSpec(family="vit", arch="vit_tiny_patch16_224", blocks_per_stage=2),
            "text": EncoderSpec(family="distilbert", blocks_per_stage=1),
        },
        description="modality -> encoder",
    )
    projection: ProjectionSpec = ProjectionSpec()
    objective: ObjectiveSpec = ContrastiveSpec()

    @field_validator("objective", mode="before")
    @classmethod
    def _contrastive_unless_named(cls, objective: Any) -> Any:
        return {"kind": "contrastive", **objective} if isinstance(objective, dict) else objective

    @field_validator("encoders")
    @classmethod
    def _modalities(cls, encoders: dict[str, EncoderSpec]) -> dict[str, EncoderSpec]:
        for modality, encoder in encoders.items():
            expected = of_kind(encoder_family(encoder.family).modality)
            if modality not in expected:
                known = " or ".join(f"`{name}`" for name in expected)
                raise ValueError(f"the family {encoder.family} encodes {known}, not `{modality}`")
        return dict(sorted(encoders.items()))

    @model_validator(mode="after")
    def _enough_modalities(self) -> Self:
        if len(self.encoders) < self.fewest_modalities:
            raise ValueError(f"a {self.objective.kind} objective needs at least {self.fewest_modalities} encoder(s)")
        if self.objective.kind == "supervised" and len(self.encoders) < fusion_kind(self.objective.fusion).fewest:
            fewest = fusion_kind(self.objective.fusion).fewest
            raise ValueError(f"the fusion {self.objective.fusion} needs at least {fewest} encoders; one is not fused")
        if self.blending is not None and len(self.encoders) < 2:
            raise ValueError("`objective.blending` needs at least 2 encoders: one modality has nothing to blend with")
        return self

    def has_metric(self, name: str) -> bool:
        """Whether an evaluation of the model has a metric, named without its side: `loss`, `t2i/R@1`, `accuracy`."""
        if name == "loss":
            return True
        if self.objective.kind == "supervised":
            head, _, measure = name.rpartition("/")
            alone = self.blending is not None and head in self.modalities and measure in ("accuracy", "loss")
            return alone or name in ("accuracy", "precision", "recall", "f1")
        tasks = "|".join(retrieval_task(*pair) for pair in permutations(self.modalities, 2))
        return bool(re.fullmatch(rf"({tasks})/R@(1|5|10|50)|zero_shot\w*(/.+)?", name))

    @property
    def fewest_modalities(self) -> int:
        """The fewest modalities that an example needs: two for pairs, one for a class."""
        return 2 if self.objective.kind == "contrastive" else 1

    @property
    def blending(self) -> BlendingSpec | None:
        """How the losses of the modalities' own heads are blended; None: there are no such heads."""
        return self.objective.blending if self.objective.kind == "supervised" else None

    @property
    def balances_classes(self) -> bool:
        """Whether the classes' weights follow from the numbers of their training examples."""
        return self.objective.kind == "supervised" and self.objective.class_weights == "balanced"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return tuple(self.encoders)
