"""Folders of tokenizers: whether one has a vocabulary, and which of its files decide its tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lwfed.types.errors import DataError

BYTES = "bytes"
"""Name of the byte-level tokenizer; ids are ByT5's, below 259."""
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
"""Files with a vocabulary, besides those of `MODELS`."""
MODELS = (".model", ".spm", ".tiktoken")
"""Suffixes of files with a vocabulary, such as SentencePiece's spiece.model."""
DECISIVE = (".json", ".txt", ".codes", *MODELS)
"""Suffixes of all files that a tokenizer reads: vocabulary, merges, added and special tokens, settings."""
WITHOUT_VOCABULARY = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})
"""Classes whose tokens are bytes or characters; their tokenizer_config.json is enough."""


def tokenizer_folder(name: str) -> Path | None:
    """Returns the folder of a tokenizer named by its folder or by a file in it; None for other names, as on a hub."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - an unknown home leaves the name as it is
    if path.is_file():
        return path.parent
    return path if path.is_dir() else None


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has a tokenizer: a vocabulary, or the settings of a class that needs none."""
    if any(file.name in VOCABULARIES or file.suffix in MODELS for file in tokenizer_files(folder)):
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and str(settings.get("tokenizer_class")) in WITHOUT_VOCABULARY


def tokenizer_files(folder: Path) -> list[Path]:
    """Returns all files of a folder that may decide a tokenizer's tokens, sorted. Raises DataError if it is closed."""
    try:
        return sorted(file for file in folder.iterdir() if file.suffix in DECISIVE and file.is_file())
    except OSError as error:
        raise DataError(f"the tokenizer {folder} cannot be read: {error.strerror}", remedy="make it readable") from None
