"""Tokenizing of captions with the spec's tokenizer, or as bytes, which need no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lwfed.catalog.tokenizers import BYTES, VOCABULARIES, has_tokenizer, tokenizer_files, tokenizer_folder
from lwfed.data.inputs import InputSettings
from lwfed.types.errors import DataError, SpecError, UnreachableError

_TIMEOUT_S = 5.0
_NAME_ONE = f"name a local folder in model.encoders.text.tokenizer, or set it to `{BYTES}`"


def tokenize(texts: Sequence[str], *, settings: InputSettings, length: int = 0) -> dict[str, Tensor]:
    """Tokenizes texts, truncated to `max_tokens` and padded to the longest.

    Args:
        texts: B texts.
        settings: Tokenizer and lengths.
        length: The least T.

    Returns:
        `ids` int64 [B, T] and `mask` bool [B, T], true for tokens and false for padding.

    Raises:
        DataError, UnreachableError: The tokenizer is not available; see `open_tokenizer`.
        SpecError: The tokenizer has more tokens than the encoder.
    """
    tokenizer = _checked(settings)
    rows = _rows(tokenizer, texts, settings=settings, longest=settings.max_tokens)
    padded = [torch.tensor(row, dtype=torch.int64) for row in rows]
    padding = tokenizer.pad_token_id or 0
    ids = pad_sequence(padded, batch_first=True, padding_value=padding)
    ids = torch.nn.functional.pad(ids, (0, max(length - ids.shape[1], 0)), value=padding)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    return {"ids": ids, "mask": mask}


def token_counts(texts: Sequence[str], *, settings: InputSettings, longest: int | None = None) -> list[int]:
    """Returns the number of tokens of each text. Raises as `tokenize` does.

    Args:
        texts: The texts.
        settings: Tokenizer and lengths.
        longest: To how many tokens texts are truncated; default: `max_tokens`, as `tokenize` does.
    """
    rows = _rows(_checked(settings), texts, settings=settings, longest=longest or settings.max_tokens)
    return [len(row) for row in rows]


def unknown_share(texts: Sequence[str], *, settings: InputSettings) -> float:
    """Returns the fraction of the texts' tokens, in [0, 1], that are the unknown token; special tokens do not count.

    It is 0 for bytes, and if the unknown token also marks the end, the beginning or padding, as GPT-2's and CLIP's do.
    """
    if not texts or settings.tokenizer in (None, BYTES):
        return 0.0
    tokenizer = _checked(settings)
    unknown, special = _unknown(tokenizer), set(tokenizer.all_special_ids)
    if unknown in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return 0.0
    rows = _rows(tokenizer, texts, settings=settings, longest=settings.max_tokens)
    tokens = [token for row in rows for token in row if token == unknown or token not in special]
    return tokens.count(unknown) / len(tokens) if tokens else 0.0


def _unknown(tokenizer: Any) -> int | None:
    """Returns the id of the unknown token, which a tokenizer.json without a tokenizer_config.json has in its model."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    token = tokenizer.unk_token or getattr(getattr(backend, "model", None), "unk_token", None)
    return None if token is None else tokenizer.convert_tokens_to_ids(token)


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
        folder = tokenizer_folder(name)
        usable = folder is None or has_tokenizer(folder)
        for file in tokenizer_files(folder) if folder else ():
            file.open("rb").close()
    except OSError as error:
        raise DataError(
            f"the tokenizer {name} cannot be read: {error.strerror}", remedy=f"make it readable, or {_NAME_ONE}"
        ) from None
    if not usable:
        raise DataError(
            f"the folder {folder} has no tokenizer ({VOCABULARIES[0]} or {VOCABULARIES[1]})",
            remedy=f"add it, name another in model.encoders.text.tokenizer, or set that to `{BYTES}`",
        )
    if folder is not None:
        tokenizer = _from_pretrained(str(folder), local=True)
        parts = [tokenizer.vocab_files_names.get(part) for part in ("vocab_file", "merges_file")]
        missing = [part for part in parts if part and not (folder / part).is_file()]
        if missing and not (folder / VOCABULARIES[0]).is_file():
            raise DataError(f"the tokenizer {folder} lacks {missing[0]}", remedy=f"copy it there, or {_NAME_ONE}")
        return tokenizer
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise DataError(f"there is no folder {name} for the tokenizer", remedy="fix model.encoders.text.tokenizer")
    try:
        return _from_pretrained(name, local=True)
    except DataError:
        _probe_hub(name)
        return _from_pretrained(name, local=False)


def _checked(settings: InputSettings) -> Any:
    tokenizer = open_tokenizer(settings.tokenizer)
    known = _known(tokenizer)
    if known > (settings.vocab_size or math.inf):
        raise SpecError(
            f"the tokenizer has {known} tokens, but the text encoder has {settings.vocab_size}",
            remedy=f"set model.encoders.text.config.vocab_size to {known} or more",
        )
    return tokenizer


@lru_cache(maxsize=4)
def _known(tokenizer: Any) -> int:
    """Returns the number of ids up to the largest, which exceeds the number of tokens if ids are left out."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


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
