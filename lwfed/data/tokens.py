"""Tokenizing of captions with the spec's tokenizer, or as bytes, which need no file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lwfed.data.inputs import InputSettings
from lwfed.types.errors import DataError, SpecError, UnreachableError

BYTES = "bytes"
"""Name of the byte-level tokenizer; ids are ByT5's, below 259."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_TIMEOUT_S = 5.0
_NAME_ONE = f"name a local folder in model.encoders.text.tokenizer, or set it to `{BYTES}`"


def tokenize(texts: Sequence[str], *, settings: InputSettings) -> dict[str, Tensor]:
    """Tokenizes texts, truncated to `max_tokens` and padded to the longest.

    Args:
        texts: B texts.
        settings: Tokenizer and lengths.

    Returns:
        `ids` int64 [B, T] and `mask` bool [B, T], true for tokens and false for padding.

    Raises:
        DataError, UnreachableError: The tokenizer is not available; see `open_tokenizer`.
        SpecError: The tokenizer has more tokens than the encoder.
    """
    tokenizer = _checked(settings)
    rows = _rows(tokenizer, texts, settings=settings, longest=settings.max_tokens)
    padded = [torch.tensor(row, dtype=torch.int64) for row in rows]
    ids = pad_sequence(padded, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    return {"ids": ids, "mask": mask}


def truncated_share(texts: Sequence[str], *, settings: InputSettings) -> float:
    """Returns the fraction of texts, in [0, 1], that are longer than `max_tokens` and therefore truncated."""
    if not texts:
        return 0.0
    rows = _rows(_checked(settings), texts, settings=settings, longest=settings.max_tokens + 1)
    return sum(len(row) > settings.max_tokens for row in rows) / len(texts)


@lru_cache(maxsize=4)
def open_tokenizer(name: str | None) -> Any:
    """Opens a tokenizer; queries the hub only if the tokenizer is neither on disk nor cached, and only if it is fast.

    Args:
        name: A folder, a weights file next to a tokenizer, or a hub id; None or `bytes`: the byte-level tokenizer.

    Returns:
        A transformers tokenizer.

    Raises:
        DataError: There is no such folder, its files are damaged, or the hub does not have it.
        UnreachableError: The tokenizer is not on this machine, and the hub does not answer.
    """
    if name is None or name == BYTES:
        from transformers import ByT5Tokenizer

        return ByT5Tokenizer(extra_ids=0)
    try:
        folder = _folder(name)
    except OSError as error:
        raise DataError(
            f"the tokenizer {name} cannot be read: {error.strerror}", remedy=f"make it readable, or {_NAME_ONE}"
        ) from None
    if folder is not None:
        return _from_pretrained(str(folder), local=True)
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise DataError(f"there is no folder {name} for the tokenizer", remedy="fix model.encoders.text.tokenizer")
    try:
        return _from_pretrained(name, local=True)
    except DataError:
        _probe_hub(name)
        return _from_pretrained(name, local=False)


def _folder(name: str) -> Path | None:
    """Returns the folder of a tokenizer, or None if its name is no path here. Raises DataError if it has none in it."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - an unknown home leaves the name as it is
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        return None
    if not any((path / file).is_file() for file in _FILES):
        raise DataError(
            f"the folder {path} has no tokenizer ({_FILES[0]} or {_FILES[2]})",
            remedy=f"add it, name another in model.encoders.text.tokenizer, or set that to `{BYTES}`",
        )
    return path


def _checked(settings: InputSettings) -> Any:
    tokenizer = open_tokenizer(settings.tokenizer)
    known = len(tokenizer)
    if known > (settings.vocab_size or math.inf):
        raise SpecError(
            f"the tokenizer has {known} tokens, but the text encoder has {settings.vocab_size}",
            remedy=f"set model.encoders.text.config.vocab_size to {known} or more",
        )
    return tokenizer


def _rows(tokenizer: Any, texts: Sequence[str], *, settings: InputSettings, longest: int) -> Any:
    """Returns the token ids of texts. Raises DataError if the tokenizer is damaged."""
    try:
        rows = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    except Exception as error:  # the tokenizers' Rust code raises plain Exceptions
        raise DataError(
            f"the tokenizer {settings.tokenizer} is damaged: {' '.join(str(error).split())[:200]}", remedy=_NAME_ONE
        ) from None
    if max(map(max, filter(None, rows)), default=0) >= (settings.vocab_size or math.inf):
        raise DataError(
            f"the tokenizer {settings.tokenizer} gives tokens that the text encoder lacks", remedy=_NAME_ONE
        )
    return rows


def _from_pretrained(name: str, *, local: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # the tokenizers' Rust code raises plain Exceptions for damaged and unreadable files
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the tokenizer {name} cannot be loaded: {reason}",
            remedy=_NAME_ONE,
        ) from None


def _probe_hub(name: str) -> None:
    """Checks once, with a short timeout, that the hub has the repository; its own client retries for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_TIMEOUT_S)
    except (RepositoryNotFoundError, ValueError):
        raise DataError(
            f"there is no folder {name}, and the hub has no tokenizer of that name", remedy=_NAME_ONE
        ) from None
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's, and the system's
        raise UnreachableError(
            f"the tokenizer {name} is not on this machine, and the hub does not answer ({type(error).__name__})",
            remedy=_NAME_ONE,
        ) from None
