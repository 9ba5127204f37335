"""Descriptions of encoder families: what the rest of lwfed must know about a family without loading torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from lwfed.catalog import describe
from lwfed.catalog.costs import Architecture

MOST_BLOCKS = 1000
"""The largest depth of an encoder."""
LARGEST = 2**31 - 1
"""The largest size."""
TOKENS = -1
"""In an input's shape: the number of tokens, which depends on the batch, up to the encoder's `max_tokens`."""


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
        """Largest number of tokens of a text."""

    @property
    def config(self) -> dict[str, Any]:
        """Overrides of the architecture."""


class Input(NamedTuple):
    """An input tensor of an encoder.

    Attributes:
        shape: Shape for one example, without the batch dimension.
        dtype: torch's name of its type.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"


class Normalise(NamedTuple):
    """The mean and standard deviation that inputs are normalised by, one of each per channel.

    Pixels in [0, 1] become (x - mean) / std, and a log-mel spectrogram, as in AST's training, (x - mean) / (2 std).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


HALF = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Pixels in [-1, 1]."""
AUDIOSET = Normalise((-4.2677393,), (4.5689974,))
"""Mean and standard deviation of AudioSet's log-mels (Gong et al. 2021, arXiv 2104.01778)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How an exported encoder is used without lwfed.

    Attributes:
        what: The model and its library.
        how: The calls that load it, as Markdown.
        feature: The part of its output that is the feature.
        needs: Packages besides torch and safetensors.
        code: Python that defines `encode_<modality>s(items)`, with `%(width)d` for D and `%(modality)s`. It may use
            `here` (the export's folder), `device` and `projection(name, width)`.
        imports: Import lines that the code needs.
        setup: Python before it, once for all modalities of the family.
    """

    what: str
    how: str
    feature: str
    needs: tuple[str, ...]
    code: str
    imports: tuple[str, ...] = ()
    setup: str = ""


def without_arch(encoder: EncoderSettings) -> None:
    """Checks that `arch` is not set, for a family that only `config` and `weights` describe."""
    if encoder.arch:
        raise ValueError(f"`arch` is not for {encoder.family}, which `config` or `weights` describe")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDescription:
    """An encoder family.

    Attributes:
        modality: The kind of modality that it encodes: `image`, `text`, `audio`, or `series`, the signal of any sensor;
            see `lwfed.types.modalities`.
        final_norm: Whether a norm follows its last block: a separate unit, trained in every stage.
        feature_token: Whether its feature is its first token, so that the last block can be computed for it alone.
        inputs: Returns an example's input, or name -> input, from the architecture's settings: those of
            `Family.config` and `Family.input_settings`.
        usage: How an export of it is used.
        normalise: How inputs are normalised unless the spec or the weights say otherwise; None for text and series.
        check: Raises ValueError if the spec's settings do not fit the family.
        architecture: Returns its tensors and costs by formulas, or None for a spec with a key that they do not cover.
            A family without formulas is counted on PyTorch's meta device, for which `lwfed plan` loads torch.
        hub: Hub id of known weights -> their config, if it differs from the library's defaults.
        types: Key of `config` -> a value of its type; where that is above 0, so must be the key's, and rates of dropout
            are in [0, 1).
        limits: Key of `config` -> its smallest and largest value, where these are narrower.
    """

    modality: str
    final_norm: bool
    feature_token: bool
    inputs: Callable[[Mapping[str, Any]], Input | Mapping[str, Input]]
    usage: Usage
    normalise: Normalise | None = None
    check: Callable[[EncoderSettings], None] = without_arch
    architecture: Callable[[EncoderSettings], Architecture | None] | None = None
    hub: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def check_types(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError if a value does not fit its key: no text is a number, no number a bool, no size below 1.

        Neither is a value outside `limits`.
        """
        for key in sorted(set(config) & set(self.types)):
            if problem := misfit(key, config[key], like=self.types[key]):
                raise ValueError(f"`config.{key}` must be {problem} (got {_short(config[key])})")
        for key in sorted(set(config) & set(self.limits)):
            least, most = self.limits[key]
            if not least <= config[key] <= most:
                wanted = least if least == most else f"from {least} to {most}"
                raise ValueError(f"`config.{key}` must be {wanted} (got {_short(config[key])})")


_DEPTHS = ("depth", "n_layers", "num_hidden_layers")
_TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    tuple: "integers",
}


def fits_type(value: Any, like: Any) -> bool:
    """Returns whether a value has the type of another; an integer fits a float, and a tuple's items may stand alone."""
    if isinstance(like, tuple):
        return all(fits_type(item, like[0]) for item in _items(value))
    if isinstance(value, bool) or isinstance(like, bool | str):
        return type(value) is type(like)
    return isinstance(value, int | float if isinstance(like, float) else int)


def misfit(key: str, value: Any, *, like: Any) -> str:
    """Returns what a setting must be, if its value has another type than `like`, or is no size or rate; else ""."""
    if not fits_type(value, like):
        return _TYPES[type(like)]
    most = MOST_BLOCKS if key in _DEPTHS else LARGEST
    if _is_size(like) and not all(1 <= item <= most for item in _items(value)):
        return f"from 1 to {most}"
    if isinstance(like, float) and "drop" in key and not 0 <= value < 1:
        return "at least 0 and below 1"
    if isinstance(like, float) and like > 0 and "drop" not in key and not 0 < value <= most:
        return f"above 0 and at most {most}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_size(like: Any) -> bool:
    return all(type(item) is int and item > 0 for item in _items(like))


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def encoder_family(name: str) -> EncoderDescription:
    """Returns the description of an encoder family."""
    description: EncoderDescription = describe("encoders", name).DESCRIPTION
    return description
