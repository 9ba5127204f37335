"""Encoders from transformers: configuration, model and weights. A family's module takes them from a `Library`.

A configuration is the weights' config.json, overridden by the spec, without unknown keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from lwfed.models.weights import checked_settings, read_config
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError, SpecError

WITHOUT_EFFECT = {
    "sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_word_embeddings", "classifier_dropout",
    "classifier_activation", "use_cache", "is_decoder", "add_cross_attention",
}  # fmt: skip
"""Keys that have no effect on an encoder here; ignored in a config.json, refused in a spec."""


@dataclass(frozen=True, slots=True)
class Library:
    """transformers' classes for a family.

    Attributes:
        config_class: The class of its configurations.
        model_class: The class of its models.
        arguments: The class's arguments besides the configuration.
    """

    config_class: Any
    model_class: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def config(self, encoder: EncoderSpec) -> dict[str, Any]:
        """Returns the architecture's settings: those in the weights' folder, overridden by the spec's.

        Returns:
            Key -> value, with the class's own keys.

        Raises:
            SpecError: An override is unknown.
            DataError: The folder has another type of model.
        """
        kind = self.config_class
        known = set(kind.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - WITHOUT_EFFECT
        found = read_config(encoder.weights)
        if found and found.get("model_type") != kind.model_type:
            raise DataError(
                f"the weights {encoder.weights} are a {str(found.get('model_type'))[:100]}, not a {kind.model_type}",
                remedy=f"name weights of a {encoder.family}",
            )
        overrides: dict[str, Any] = {}
        for key, value in encoder.config.items():
            own = kind.attribute_map.get(key, key)
            if own not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
                hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"
                raise SpecError(f"a {encoder.family} has no `config.{key}`", remedy=hint)
            overrides[own] = value
        checked_settings(encoder, found)
        folder = {kind.attribute_map.get(key, key): value for key, value in found.items()}
        return {**{key: value for key, value in folder.items() if key in known}, **overrides}

    def settings(self, encoder: EncoderSpec, **extra: Any) -> Any:
        """Creates the configuration, with torch's scaled dot product attention; `extra` overrides all other settings.

        Raises:
            SpecError: A value has a wrong type or is unknown.
            DataError: The folder has another type of model.
        """
        from huggingface_hub.errors import StrictDataclassError

        values = {**self.config(encoder), **extra}
        try:
            return self.config_class(**values, attn_implementation="sdpa")
        except (StrictDataclassError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())[:300]
            raise SpecError(f"a wrong value in a {encoder.family}'s `config`: {line}", remedy="correct it") from None

    def build(self, encoder: EncoderSpec, settings: Any) -> Any:
        """Builds the model for a configuration on the default device. Raises SpecError if sizes do not fit."""
        try:
            return self.model_class(settings, **self.arguments)
        except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, ZeroDivisionError) as error:
            line = " ".join(str(error).split())[:300]
            raise SpecError(
                f"transformers cannot build this {encoder.family}: {line}", remedy="correct `config`"
            ) from None

    def library_config(self, encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
        """Returns the config.json that the model class's `from_pretrained` reads, for a model with `depth` blocks."""
        settings = self.settings(encoder, architectures=[self.model_class.__name__])
        settings.num_hidden_layers = depth
        return dict(settings.to_dict())

    def adapt(self, encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Converts a checkpoint's tensors to the in-memory names of transformers' model, by its own conversions.

        Args:
            encoder: The encoder.
            tensors: Name in the file -> tensor; may include heads of other tasks.

        Returns:
            Name in the model -> tensor, fp32, for all of the model's tensors.

        Raises:
            DataError: Tensors are missing or have another shape.
        """
        import torch
        from transformers.utils import logging

        bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            with torch.random.fork_rng(devices=[]):
                model, info = self.model_class.from_pretrained(
                    None,
                    config=self.settings(encoder),
                    state_dict=dict(tensors),
                    dtype=torch.float32,
                    output_loading_info=True,
                    **self.arguments,
                )
        except RuntimeError as error:
            raise DataError(
                f"the weights {encoder.weights} do not fit the architecture: {' '.join(str(error).split())[:300]}",
                remedy="make `config` agree with the weights",
            ) from None
        finally:
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise DataError(
                f"the weights {encoder.weights} lack {len(missing)} tensors of this {encoder.family}, "
                f"such as {missing[0]}",
                remedy="name weights of this architecture, or make `config` agree with them",
            )
        return dict(model.state_dict())
