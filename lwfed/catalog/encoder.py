"""What the rest of lwfed must know of an encoder family before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from lwfed.catalog import describe
from lwfed.catalog.costs import Architecture

TOKENS = -1
"""In an input's shape: the number of tokens, which a batch chooses, up to the encoder's `max_tokens`."""


class EncoderSettings(Protocol):
    """The part of a spec that describes an encoder."""

    @property
    def family(self) -> str:
        """Name of its family."""

    @property
    def arch(self) -> str | None:
        """Name of the architecture in its library, for families that have several."""

    @property
    def weights(self) -> str | None:
        """Pretrained weights: a folder, a file or a hub id."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text."""

    @property
    def config(self) -> dict[str, Any]:
        """Overrides of the architecture."""


class Input(NamedTuple):
    """A tensor that an encoder takes.

    Attributes:
        shape: Sizes for one example, without the batch's.
        dtype: torch's name of its type.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Usage:
    """How an exported encoder is used without lwfed.

    Attributes:
        what: Which model of which library it is.
        how: The calls that load it, as Markdown.
        feature: What of its output is the feature.
        needs: Packages besides torch and safetensors.
        code: Python that defines `encode_<modality>s(items)`, with `%(width)d` for D. It may use `here` (the export's
            folder), `device` and `projection(name, width)`.
        imports: Lines that the code needs.
    """

    what: str
    how: str
    feature: str
    needs: tuple[str, ...]
    code: str
    imports: tuple[str, ...] = ()


def without_arch(encoder: EncoderSettings) -> None:
    """Checks the settings of a family that is described by `config` and `weights` alone."""
    if encoder.arch:
        raise ValueError(f"`arch` is not for {encoder.family}, which is described by `config` or `weights`")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDescription:
    """An encoder family.

    Attributes:
        modality: What it encodes: `image`, `text` or `audio`.
        final_norm: Whether a norm follows its last block: a unit of its own, trained in every stage.
        feature_token: Whether its feature is its first token, so that the last block may be computed for that alone.
        inputs: An example's input, or name -> input, from the architecture's settings: those of `Family.config` and
            `Family.input_settings`.
        usage: How an export of it is used.
        check: Raises ValueError where the spec's settings do not fit the family.
        architecture: Its tensors and costs as formulas; None for a spec that the formulas do not cover to the last
            key. A family without formulas is counted on PyTorch's meta device, for which `lwfed plan` loads torch.
        hub: Hub id of known weights -> their config, where it differs from the library's defaults.
    """

    modality: str
    final_norm: bool
    feature_token: bool
    inputs: Callable[[Mapping[str, Any]], Input | Mapping[str, Input]]
    usage: Usage
    check: Callable[[EncoderSettings], None] = without_arch
    architecture: Callable[[EncoderSettings], Architecture | None] | None = None
    hub: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def encoder_family(name: str) -> EncoderDescription:
    """Returns the description of an encoder family."""
    description: EncoderDescription = describe("encoders", name).DESCRIPTION
    return description
