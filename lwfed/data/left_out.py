"""Counts of what lies with the data and becomes no part of an example, so that nothing is left out unseen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from lwfed.data.folders import files_below

BLANK = "blank captions"
NO_CAPTION = "images without captions"
ENDINGS = "files with other endings"
HIDDEN = "hidden files"
ELSEWHERE = "files in other folders"
UNNAMED = "files that no row names"
EMPTY_ROWS = "empty rows"
REPEATED_ROWS = "repeated rows"
REPEATED_CAPTIONS = "repeated captions"
NOTHING_ROWS = "rows without image, text, sound and series"
NO_LABEL = "rows without a label"
NOT_READ = "files that are not read"
UNREADABLE = "unreadable examples"
INCOMPLETE = "examples that lack a modality"
UNUSED = "training examples of no client that takes part"


def too_few(fewest: int) -> str:
    """Returns what examples count as that have fewer modalities, of those that the model reads, than it needs."""
    return f"examples with fewer than {fewest} of the model's modalities" if fewest > 1 else "examples with no modality"


def of_captions(path: Path, images: Path, *, used: Collection[str]) -> Counter[str]:
    """Counts what a captions json and its folder hold besides the examples.

    Args:
        path: The json, already read once without an error.
        images: The folder of its images.
        used: Names of the examples' files, below the folder.

    Returns:
        What is left out -> how many.
    """
    tree = json.loads(path.read_bytes())
    found = Counter({BLANK: sum(not note["caption"].strip() for note in tree["annotations"])})
    endings = {PurePosixPath(name).suffix.lower() for name in used}
    names = {str(PurePosixPath(image["file_name"])) for image in tree["images"]} | set(files_below(images))
    found.update(_reason(name, endings=endings, otherwise=NO_CAPTION) for name in names - set(used))
    return +found


def of_folders(
    root: Path, *, used: Collection[str], endings: Collection[str], otherwise: str = ELSEWHERE
) -> Counter[str]:
    """Counts the files below a folder that belong to no example; see `of_names`."""
    return of_names(files_below(root), used=used, endings=endings, otherwise=otherwise)


def of_names(
    names: Iterable[str], *, used: Collection[str], endings: Collection[str], otherwise: str = ELSEWHERE
) -> Counter[str]:
    """Counts the files that belong to no example.

    Args:
        names: Names of all files.
        used: Names of the examples' files.
        endings: Endings of the files that examples may have.
        otherwise: What others with such an ending are called.

    Returns:
        What is left out -> how many.
    """
    return Counter(_reason(name, endings=endings, otherwise=otherwise) for name in set(names) - set(used))


def _reason(name: str, *, endings: Collection[str], otherwise: str) -> str:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return HIDDEN
    return otherwise if path.suffix.lower() in endings else ENDINGS
