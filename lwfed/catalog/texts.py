"""What the text encoders share: their inputs, and how their exports are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwfed.catalog.encoder import TOKENS, Input, Usage


def inputs(settings: Mapping[str, Any]) -> Mapping[str, Input]:
    """Returns a text's token ids and their mask."""
    return {"ids": Input((TOKENS,), "int64"), "mask": Input((TOKENS,), "bool")}


def text_usage(model: str, *, arguments: str = "") -> Usage:
    """Returns how an export is used.

    Args:
        model: transformers' name of the model's class.
        arguments: Python that follows the folder among the arguments of `from_pretrained`.
    """
    return Usage(
        what=f"transformers {model} and its tokenizer",
        how="`AutoModel`, `AutoTokenizer`",
        feature="the first token of its last hidden state",
        needs=("transformers",),
        imports=("from transformers import AutoModel, AutoTokenizer",),
        code=_CODE.replace("ARGUMENTS", arguments),
    )


_CODE = """\
bert = AutoModel.from_pretrained(here / "text"ARGUMENTS).eval().to(device)
tokenizer = AutoTokenizer.from_pretrained(here / "text")
text_head = projection("text", %(width)d)


def encode_texts(texts):
    tokens = tokenizer(texts, truncation=True, padding=True, return_tensors="pt").to(device)
    return text_head(bert(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[:, 0])
"""
