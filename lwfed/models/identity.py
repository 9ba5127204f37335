"""Identity of weights and tokenizers: their files' content, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.tokenizers import BYTES, tokenizer_files, tokenizer_folder
from lwfed.models.weights import PREPROCESSOR, folder_of, is_hub_id, tensor_files, unreadable
from lwfed.spec.model import EncoderSpec
from lwfed.types.canonical import digest_of


def weights_version(encoder: EncoderSpec) -> str:
    """Identifies weights and tokenizer by their content, not their location.

    Returns:
        A digest of the files' names and sha256 (the configs and all files of the tokenizer included); a hub id stands
        for itself; "" without weights and without a tokenizer's folder.

    Raises:
        DataError: There is no such folder or file.
    """
    weights, files = encoder.weights, dict[str, Path]()
    on_hub = weights is not None and is_hub_id(weights)
    if weights is not None and not on_hub:
        folder = folder_of(weights)
        files = {file.name: file for file in (*tensor_files(weights), folder / "config.json", folder / PREPROCESSOR)}
    files |= {f"tokenizer/{file.name}": file for file in _tokenizer_files(encoder)}
    digests = {name: _sha256(file) for name, file in files.items() if file.is_file()}
    if on_hub:
        return digest_of({"weights": weights, **digests}) if digests else str(weights)
    return digest_of(digests) if digests else ""


def tokenizer_version(encoder: EncoderSpec) -> str:
    """Identifies an encoder's tokenizer by the content of its files; "" for bytes, a hub id, or no text."""
    files = _tokenizer_files(encoder)
    return digest_of({file.name: _sha256(file) for file in files}) if files else ""


def _tokenizer_files(encoder: EncoderSpec) -> list[Path]:
    named = encoder.tokenizer or encoder.weights
    if encoder_family(encoder.family).modality != "text" or named is None or named == BYTES:
        return []
    folder = tokenizer_folder(named)
    return tokenizer_files(folder) if folder else []


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
