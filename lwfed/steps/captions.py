"""Checks captions against the tokenizer before any work starts: words it does not know, and captions it truncates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import mean

from lwfed.data.protocol import Example
from lwfed.run.events import Emit, Warning
from lwfed.spec.run import RunSpec
from lwfed.types.errors import DataError
from lwfed.types.seeds import derive

CAPTIONED_EXAMPLES = 2000
"""The most examples whose captions are checked."""
WARNING_SHARE = 0.01
"""Share of truncated captions above which a warning is shown."""
UNKNOWN_SHARE = 0.1
"""Share of unknown tokens above which a warning is shown."""


def refuse_unknown(spec: RunSpec, data: Mapping[str, Sequence[Example]], *, emit: Emit) -> None:
    """Warns of captions in words that the tokenizer does not know.

    Args:
        spec: The experiment.
        data: Whose examples they are, a client's or the server's -> the examples.
        emit: Receives `Warning`.

    Raises:
        DataError: The tokenizer knows no word of someone's captions.
    """
    if "text" not in spec.model.modalities:
        return
    from lwfed.data.tokens import open_tokenizer, unknown_share
    from lwfed.round.workbench import inputs_of

    open_tokenizer.cache_clear()  # its files may have changed since this process's last run
    settings = inputs_of(spec.model)
    told = {who: captions for who, examples in data.items() if (captions := _captions(examples))}
    shares = {who: unknown_share(captions, settings=settings) for who, captions in told.items()}
    name = settings.tokenizer
    none = sorted(who for who, share in shares.items() if share == 1)
    if none:
        raise DataError(
            f"the tokenizer {name} knows no word of the captions of {', '.join(none)}: all tokens are unknown",
            remedy="name the tokenizer of the weights or of the captions' language in model.encoders.text.tokenizer",
        )
    many = [f"{share:.0%} of {who}'s" for who, share in shares.items() if share > UNKNOWN_SHARE]
    if many:
        emit(Warning(message=f"the tokenizer {name} does not know these tokens of the captions: {', '.join(many)}"))


@dataclass(frozen=True, slots=True)
class CaptionTokens:
    """The mean number of a caption's tokens by modality; empty where there are no captions to measure.

    Attributes:
        padded: As steps see it: padded to the longest of its batch.
        alone: Without padding.
    """

    padded: Mapping[str, int] = field(default_factory=dict)
    alone: Mapping[str, int] = field(default_factory=dict)


def caption_tokens(spec: RunSpec, data: Iterable[Sequence[Example]], *, emit: Emit) -> CaptionTokens:
    """Warns of truncated captions. Returns how long captions are.

    Args:
        spec: The experiment.
        data: Clients' examples; those of the first that has captions are measured.
        emit: Receives `Warning`.
    """
    if "text" not in spec.model.modalities:
        return CaptionTokens()
    from lwfed.data.tokens import token_counts
    from lwfed.round.workbench import inputs_of

    settings = inputs_of(spec.model)
    captions: list[str] = next(filter(None, map(_captions, data)), [])
    if not captions:
        return CaptionTokens()
    captions.sort(key=lambda caption: derive("0", caption))
    most = settings.max_tokens
    counts = token_counts(captions, settings=settings, longest=most + 1)
    share = sum(count > most for count in counts) / len(counts)
    if share > WARNING_SHARE:
        emit(
            Warning(
                message=f"{share:.0%} of the captions are truncated to {most} tokens; "
                "raise model.encoders.text.max_tokens, or set a word tokenizer"
            )
        )
    lengths = [min(count, most) for count in counts]
    size = min(spec.training.batch_size, len(lengths))
    padded = [max(lengths[start : start + size]) for start in range(0, len(lengths) - size + 1, size)]
    return CaptionTokens(padded={"text": round(mean(padded))}, alone={"text": round(mean(lengths))})


def _captions(examples: Sequence[Example]) -> list[str]:
    captioned = islice((example for example in examples if example.captions), CAPTIONED_EXAMPLES)
    return [caption for example in captioned for caption in example.captions]
