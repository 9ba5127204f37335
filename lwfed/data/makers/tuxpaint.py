"""Pictures with texts and spoken descriptions in many languages, from Debian's package of Tux Paint's stamps.

The package has 785 PNG pictures besides mirrored ones, with a one-line text in up to 78 languages, English among them,
and spoken descriptions in some. A picture's class is its outermost folder. The table has a row per picture and
language, whose site is the language, so that languages can be clients. All rows of a picture are in one split.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwfed.data.makers.whole import made_whole, refuse_used
from lwfed.types.errors import DataError, SpecError
from lwfed.types.seeds import derive

INSTALLED = Path("/usr/share/tuxpaint/stamps")
PACKAGE = "tuxpaint-stamps-default"
SPOKEN = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
"""Languages with hundreds of spoken descriptions; all but Danish have them for most pictures."""
TABLE = "table.jsonl"
_ENGLISH = "en"
_TRANSLATION = re.compile(r"(?P<language>[A-Za-z]+(_[A-Za-z]+)?(@[a-z]+)?)\.utf8=(?P<text>.*)")
_MIRRORED = re.compile(r"_(mirror|flip)$")
MAKES = ("images", "sounds", TABLE)
"""What the folder has in the end."""

Progress = Callable[[int, int], None]
"""Called with (number of pictures done, number of pictures)."""


@dataclass(frozen=True)
class Stamp:
    """A picture.

    Attributes:
        path: Path of the picture below the stamps' folder.
        texts: Language -> its text.
        sounds: Language -> path of its spoken description.
    """

    path: Path
    texts: dict[str, str]
    sounds: dict[str, Path]


def make(
    folder: Path,
    *,
    source: Path | None = None,
    languages: Sequence[str] = SPOKEN,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Writes table.jsonl, images/ and sounds/ for `data: {source: table}`.

    Files are hard links where the package lies on the same file system, else copies.

    Args:
        folder: The folder to write; it must be new, empty or left by an interrupted call.
        source: The unpacked package or its folder of stamps; None: where Debian installs it.
        languages: The languages, or `all`.
        test_fraction: Fraction of each class's pictures for testing.
        validation_fraction: Fraction of each class's pictures for validation; may be 0.
        seed: Decides the split.
        progress: Called after each picture.

    Returns:
        Number of `pictures`, `rows`, rows by `splits`, `texts` and `sounds` by language, `classes`, and `left_out`.

    Raises:
        SpecError: No picture has a text in a language, the fractions leave nothing to train on, or the folder has
            something else in it.
        DataError: The package is missing or damaged.
        DiskFullError, UnreachableError: The folder cannot be written.
    """
    if not 0 < test_fraction < 1 or not 0 <= validation_fraction < 1 - test_fraction:
        raise SpecError(
            f"the fractions {test_fraction:g} for testing and {validation_fraction:g} for validation leave no pictures",
            remedy="name a test fraction above 0, and fractions whose sum is below 1",
        )
    refuse_used(folder, makes=MAKES)
    root = _root(source)
    stamps, left_out = _stamps(root)
    wanted = _languages(stamps, languages)
    splits = _splits([stamp.path for stamp in stamps], test=test_fraction, validation=validation_fraction, seed=seed)
    with made_whole(folder, makes=MAKES) as part:
        rows = _write(part, stamps, wanted, left_out, root=root, splits=splits, progress=progress)
    return {
        "pictures": len({row["picture"] for row in rows}),
        "rows": len(rows),
        "splits": dict(Counter(row["split"] for row in rows)),
        "texts": dict(Counter(row["site"] for row in rows)),
        "sounds": dict(Counter(row["site"] for row in rows if "audio" in row)),
        "classes": sorted({row["label"] for row in rows}),
        "left_out": dict(+left_out),
    }


def _write(
    folder: Path,
    stamps: Sequence[Stamp],
    wanted: Sequence[str],
    left_out: Counter[str],
    *,
    root: Path,
    splits: Mapping[Path, str],
    progress: Progress,
) -> list[dict[str, str]]:
    """Writes the pictures, the sounds and the table; returns its rows, and counts what is left out."""
    rows = []
    for done, stamp in enumerate(stamps, start=1):
        spoken = [language for language in wanted if language in stamp.sounds]
        told = [language for language in wanted if language in stamp.texts]
        left_out["spoken descriptions without a text"] += len(set(spoken) - set(told))
        for language in told:
            row = {
                "id": f"{language}/{stamp.path.as_posix()}",
                "image": _link(root / stamp.path, folder, Path("images") / stamp.path),
                "text": stamp.texts[language],
                "label": stamp.path.parts[0],
                "site": language,
                "split": splits[stamp.path],
                "picture": stamp.path.with_suffix("").as_posix(),
            }
            if language in spoken:
                sound = stamp.sounds[language]
                row["audio"] = _link(root / sound, folder, Path("sounds") / sound)
            rows.append(row)
        progress(done, len(stamps))
    (folder / TABLE).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return rows


def _root(source: Path | None) -> Path:
    """Returns the folder of stamps. Raises DataError if there is none."""
    places = [INSTALLED] if source is None else [source / INSTALLED.relative_to("/"), source / "stamps", source]
    for place in places:
        if place.is_dir() and any(place.glob("*/**/*.png")):
            return place
    where = INSTALLED if source is None else source
    raise DataError(
        f"there are no stamps of Tux Paint in {where}",
        remedy=f"`apt install {PACKAGE}`; or `apt download {PACKAGE}`, `dpkg-deb -x {PACKAGE}_*.deb FOLDER` and "
        "--from FOLDER",
    )


def _stamps(root: Path) -> tuple[list[Stamp], Counter[str]]:
    """Returns the pictures by path, and counts those that are left out."""
    stamps, left_out = [], Counter[str]()
    sounds: dict[str, dict[str, Path]] = {}
    for pattern in ("*_desc*.ogg", "*_desc*.wav"):
        for path in sorted(root.rglob(pattern)):
            stem, _, language = path.stem.rpartition("_desc")
            place = sounds.setdefault((path.parent / stem).as_posix(), {})
            place.setdefault(language.removeprefix("_") or _ENGLISH, path.relative_to(root))
    left_out["vector pictures"] = sum(not path.with_suffix(".png").exists() for path in root.rglob("*.svg"))
    for path in sorted(root.glob("*/**/*.png")):
        described = path.with_suffix(".txt")
        if _MIRRORED.search(path.stem):
            left_out["mirrored pictures"] += 1
        elif not described.is_file():
            left_out["pictures without texts"] += 1
        else:
            spoken = sounds.get(path.with_suffix("").as_posix(), {})
            stamps.append(Stamp(path.relative_to(root), _texts(described), spoken))
    return stamps, left_out


def _texts(path: Path) -> dict[str, str]:
    """Returns language -> text of a picture's description, whose first line is English."""
    try:
        first, *others = path.read_text(encoding="utf-8-sig").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", remedy=f"unpack {PACKAGE} again") from None
    found = {m["language"]: m["text"].strip() for line in others if (m := _TRANSLATION.fullmatch(line.strip()))}
    return {language: text for language, text in ({_ENGLISH: first.strip()} | found).items() if text}


def _languages(stamps: Sequence[Stamp], languages: Sequence[str]) -> list[str]:
    """Returns the wanted languages, sorted. Raises SpecError if no picture has a text in one of them."""
    known = sorted({language for stamp in stamps for language in stamp.texts})
    if list(languages) == ["all"]:
        return known
    for language in languages:
        if language not in known:
            near = difflib.get_close_matches(language, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SpecError(
                f"no picture has a text in the language {language!r}{hint}", remedy=f"name some of: {', '.join(known)}"
            )
    if not languages:
        raise SpecError("no language is named", remedy=f"name some of: {', '.join(known)}; or all")
    return sorted(set(languages))


def _splits(pictures: Sequence[Path], *, test: float, validation: float, seed: int) -> dict[Path, str]:
    """Returns picture -> split, by fractions of each class: the same ones for a seed, whatever the languages."""
    splits: dict[Path, str] = {}
    classes: dict[str, list[Path]] = {}
    for path in pictures:
        classes.setdefault(path.parts[0], []).append(path)
    for members in classes.values():
        order = sorted(members, key=lambda path: derive(str(seed), "tuxpaint", path.as_posix()))
        tested, validated = round(test * len(order)), round(validation * len(order))
        for n, path in enumerate(order):
            splits[path] = "test" if n < tested else "validation" if n < tested + validated else "train"
    return splits


def _link(source: Path, folder: Path, path: Path) -> str:
    """Puts a file into the folder, unless it is there already; returns its path in it."""
    target = folder / path
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)
    return path.as_posix()
