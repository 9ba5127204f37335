"""Made-up inputs of an encoder, and the size of what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from lwfed.catalog.encoder import TOKENS, Input, encoder_family
from lwfed.models.build import input_settings
from lwfed.models.families import family_of
from lwfed.spec.model import EncoderSpec

Sample = Input | Mapping[str, Input]
"""An example's input, or name -> input."""


def sample_of(encoder: EncoderSpec) -> Sample:
    """Returns the input of one example."""
    settings = family_of(encoder).config(encoder) | input_settings(encoder)
    return encoder_family(encoder.family).inputs(settings)


def made_up(sample: Sample, *, batch: int, length: int) -> Any:
    """Returns a batch of ones on the default device; texts have `length` tokens."""
    if not isinstance(sample, Input):
        return {name: made_up(given, batch=batch, length=length) for name, given in sample.items()}
    shape = [length if size == TOKENS else size for size in sample.shape]
    return torch.ones(batch, *shape, dtype=getattr(torch, sample.dtype))


def shape_after(encoder: EncoderSpec, *, depth: int) -> tuple[int, int]:
    """Returns the tokens of an example's state after some blocks, a text's at its largest length, and their width.

    Args:
        encoder: The encoder's spec.
        depth: Number of blocks.
    """
    return _shape_after(encoder.model_dump_json(), depth)


@lru_cache(maxsize=32)
def _shape_after(encoder: str, depth: int) -> tuple[int, int]:
    spec = EncoderSpec.model_validate_json(encoder)
    with torch.device("meta"), torch.no_grad():
        module = family_of(spec).build(spec, depth=depth).eval()
        inputs = made_up(sample_of(spec), batch=1, length=spec.max_tokens)
        _, length, width = module.advance(module.embed(inputs), start=0, stop=depth).tokens.shape
    return length, width
