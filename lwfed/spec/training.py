"""Local training on a client, the levers that make it cheaper without changing what it learns, and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwfed.spec.base import Section
from lwfed.types.encoded import Codec

_Positive = Annotated[float, Field(gt=0)]
Rate = _Positive | tuple[_Positive, ...]


class RateScalingSpec(Section):
    """Scaling of learning rates with the batch size."""

    reference_batch: int = Field(256, ge=1, description="rates are multiplied by batch_size / reference_batch")


class TrainingSpec(Section):
    """A client's training in one round."""

    local_epochs: int = Field(3, ge=1, description="passes over the client's data per round")
    local_steps: int | None = Field(None, ge=1, description="optimiser steps per round, instead of local_epochs")
    batch_size: int = Field(32, ge=2, description="examples per step; at most all of the client's")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per step; a step still sees batch_size")
    learning_rate: float = Field(1.0e-4, gt=0, description="AdamW's; as written unless rate_scaling is set")
    learning_rates: dict[str, Rate] = Field(
        default_factory=dict,
        description="rate per module group (a modality, projection, prediction with fusion, temperature if learnable), "
        "or one per stage",
    )
    rate_scaling: RateScalingSpec | None = Field(
        None,
        description="{reference_batch: 256} scales rates by batch_size / 256, as the paper's code does",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    weight_decays: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weight decay per module group; a learnable temperature's is 0 by default"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of a step's gradient; null: no clipping")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 if the device supports it")
    proximal_mu: float = Field(0.0, ge=0, description="FedProx: weight of the distance to the global model")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads per client; affects digests")
    moments: Literal["fp32", "bf16", "int8"] = Field("fp32", description="format of AdamW's two moments")
    step_in_backward: bool = Field(
        False, description="update each parameter as soon as its gradient is complete, and free the gradient at once"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute the trained blocks' activations in the backward pass instead of saving them"
    )

    @model_validator(mode="after")
    def _step_in_backward_fits(self) -> Self:
        if self.step_in_backward and self.gradient_accumulation > 1:
            raise ValueError(
                "`step_in_backward` frees each gradient at once, but `gradient_accumulation` adds them up: use one"
            )
        if self.step_in_backward and self.clip_norm is not None:
            raise ValueError("`step_in_backward` never has all gradients, but `clip_norm` needs their norm: use one")
        return self


class LeversSpec(Section):
    """The levers that may be used; `lwfed plan` shows those in use and what each saves."""

    last_block: Literal["auto", "full", "row", "absorbed"] = Field(
        "auto",
        description="the last present block, if the feature is one token: row computes it for that token alone, "
        "absorbed also absorbs K and V into its query where the encoder can, auto is the cheapest, full computes all "
        "tokens",
    )
    prefix_cache: Literal["auto", "always", "never"] = Field(
        "auto", description="clients cache the outputs of frozen blocks; auto: if that pays over the run's rounds"
    )
    prefix_dtype: Codec = Field(
        "fp32",
        description="format in which they are cached: bf16 takes half of the disk and of its bandwidth, int8, with a "
        "scale per token, about a quarter; both round them",
    )
    views: int = Field(
        4,
        ge=0,
        description="augmented views of an image that are cached and cycled through; 0: each epoch crops again, and "
        "frozen blocks of images run again too",
    )

    @model_validator(mode="after")
    def _format_of_something(self) -> Self:
        if self.prefix_cache == "never" and self.prefix_dtype != "fp32":
            raise ValueError(f"`prefix_dtype: {self.prefix_dtype}` has no effect with `prefix_cache: never`: use one")
        return self


class EvaluationSpec(Section):
    """When the model is evaluated, and on which data."""

    every: int = Field(1, ge=1, description="centralised evaluation every k rounds, and after each stage's last round")
    federated_every: int = Field(0, ge=0, description="evaluation on clients' held-out shares every k rounds; 0: never")
    holdout_fraction: float = Field(0.0, ge=0, lt=1, description="fraction of a client's examples held out of training")
    batch_size: int = Field(64, ge=1, description="examples at a time")
    classes: tuple[str, ...] = Field((), description="zero-shot: class names; empty: the data's, if any")
    prompts: tuple[str, ...] = Field(("a photo of a {c}",), description="zero-shot: templates; {c} is the class")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.federated_every and not self.holdout_fraction:
            raise ValueError("`federated_every` needs a `holdout_fraction`, for example 0.1")
        for prompt in self.prompts:
            if "{c}" not in prompt:
                raise ValueError(f"the prompt {prompt!r} has no {{c}} for the class")
        return self
