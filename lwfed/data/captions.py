"""Captions in COCO's json, checked: ids and files are unique, texts are texts, and an error names the entries."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from lwfed.data.folders import inside
from lwfed.data.texts import is_unicode, refuse_compressed, unique_keys
from lwfed.types.errors import DataError

_FORMAT = "use a captions json in COCO format, with `images` and `annotations`"
_NAMES = {str: "a text", int: "an integer", list: "a list", dict: "an object"}
_MISSING: Any = object()


def parse_captions(path: Path, content: bytes) -> dict[str, tuple[str, ...]]:
    """Reads a captions json.

    Args:
        path: The file's name, for errors.
        content: Its bytes.

    Returns:
        File name of an image -> its captions by annotation id, spaces joined. Images without captions are left out.

    Raises:
        DataError: It is not a captions json; an entry lacks a field or has one of the wrong type; two entries have one
            id; two images are one file; or a caption's image is not listed.
    """
    tree = _tree(path, content)
    image_ids = _column(path, tree, "images", "id", kinds=(int, str))
    files = [_inside(path, n, name) for n, name in enumerate(_column(path, tree, "images", "file_name", kinds=(str,)))]
    note_ids = _column(path, tree, "annotations", "id", kinds=(int, str))
    note_images = _column(path, tree, "annotations", "image_id", kinds=(int, str))
    texts = _column(path, tree, "annotations", "caption", kinds=(str,))
    _refuse_twice(path, "images", "id", image_ids)
    _refuse_twice(path, "images", "file_name", files)
    _refuse_twice(path, "annotations", "id", note_ids)

    file_of = dict(zip(image_ids, files, strict=True))
    captions: dict[str, list[tuple[Any, str]]] = defaultdict(list)
    for n, (note, image, caption) in enumerate(zip(note_ids, note_images, texts, strict=True)):
        if image not in file_of:
            raise DataError(
                f"{path}: {_place(tree, 'annotations', n)}: the caption {caption[:60]!r} has the image id {image!r}, "
                f"which is not in `images`{_other_type(image, image_ids)}",
                remedy="add the image to `images`, or remove its captions",
            )
        text = " ".join(caption.split())
        if text:
            captions[file_of[image]].append((note, text))
    if not captions:
        raise DataError(f"{path} has no captions", remedy=_FORMAT)
    return {file: tuple(text for _, text in sorted(notes)) for file, notes in captions.items()}


def _tree(path: Path, content: bytes) -> dict[str, Any]:
    refuse_compressed(path, content)
    try:
        tree = json.loads(content, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", remedy="save it as UTF-8") from None
    except RecursionError:
        raise DataError(f"{path} is not a captions json: it is nested too deeply", remedy=_FORMAT) from None
    except KeyError as error:
        raise DataError(
            f"{path} is not a captions json: an object has the key {error} twice", remedy="remove one of them"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", remedy="download it again, or fix it at that place") from None
    for key in ("images", "annotations"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{path} is not a captions json: it has no list `{key}`", remedy=_FORMAT)
    return tree


def _column(path: Path, tree: dict[str, Any], key: str, field: str, *, kinds: tuple[type, ...]) -> list[Any]:
    """Returns a field of all entries of a list. Raises DataError unless they are of one type, and texts are Unicode."""
    values = [entry.get(field, _MISSING) if isinstance(entry, dict) else _MISSING for entry in tree[key]]
    types = set(map(type, values))
    if len(types) <= 1 and types <= set(kinds) and (str not in types or is_unicode("".join(values))):
        return values
    faults = ((n, _fault(value, kinds, like=values[0])) for n, value in enumerate(values))
    n, (problem, remedy) = next((n, fault) for n, fault in faults if fault)
    where = f"{_place(tree, key, n)}: `{field}`"
    raise DataError(f"{path} is not a captions json: {where} {problem}", remedy=remedy)


def _fault(value: Any, kinds: tuple[type, ...], *, like: Any) -> tuple[str, str] | None:
    """Returns what is wrong with a value and the remedy; None if it is right and of the type of `like`."""
    if value is _MISSING:
        return "is missing", _FORMAT
    shown = _NAMES[type(value)] if isinstance(value, list | dict) else json.dumps(value)[:60]
    if type(value) not in kinds:
        return f"is {shown}, not {' or '.join(_NAMES[kind] for kind in kinds)}", "fix or remove the entry"
    if type(value) is not type(like):
        before = f"is {_NAMES[type(value)]}, {shown}, and {_NAMES[type(like)]} before, {json.dumps(like)[:60]}"
        return before, "write all of them as integers, or all as texts"
    if isinstance(value, str) and not is_unicode(value):
        return f"has half of a surrogate pair, {shown}", "write the text again: it stands for no character"
    return None


def _refuse_twice(path: Path, key: str, field: str, values: Sequence[Hashable]) -> None:
    """Raises DataError if two entries have the same value, and names both."""
    if len(set(values)) == len(values):
        return
    first: dict[Hashable, int] = {}
    for n, value in enumerate(values):
        if value in first:
            raise DataError(
                f"{path}: {key}[{first[value]}] and {key}[{n}] have the same {field}, {value!r}",
                remedy=f"remove one of them, or give it another {field}",
            )
        first[value] = n


def _inside(path: Path, n: int, name: str) -> str:
    """Returns a file name in its shortest form. Raises DataError if it does not lie in the folder of the images."""
    short = inside(name)
    if short is None:
        raise DataError(
            f"{path}: images[{n}]: the file_name {name[:60]!r} is not in the folder of the images",
            remedy="name the image by its path in that folder",
        )
    return short


def _other_type(image: int | str, image_ids: Sequence[int | str]) -> str:
    if type(image) is type(next(iter(image_ids), image)):
        return ""
    return f": there, ids are {_NAMES[type(image_ids[0])]} each, and here {_NAMES[type(image)]}"


def _place(tree: dict[str, Any], key: str, n: int) -> str:
    """Returns where an entry stands, with its id if it has one."""
    entry = tree[key][n]
    known = isinstance(entry, dict) and type(entry.get("id")) in (int, str)
    return f"{key}[{n}]" + (f" (id {json.dumps(entry['id'])[:60]})" if known else "")
