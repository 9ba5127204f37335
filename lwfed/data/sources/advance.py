"""Images and sounds of places in ADVANCE's layout: a folder per class on both sides, paired by file stem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lwfed.data.files import read_image, read_sound
from lwfed.data.folders import alike, data_root, listing_digest, of_split, require_folder, require_unicode
from lwfed.data.left_out import of_folders
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError
from lwfed.types.seeds import derive

SUFFIXES = {"vision": (".jpg", ".jpeg", ".png"), "sound": (".wav", ".flac", ".ogg")}
"""Side -> suffixes of its files; other files are ignored."""


@dataclass(frozen=True)
class Advance:
    """Pairs of an image and a sound."""

    root: Path
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, str]] = field(repr=False)
    digest: str

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of `train` or `test`."""
        return of_split(split, train=self.train, test=self.test)

    def version(self) -> str:
        """Returns the digest of the files' names and splits."""
        return self.digest

    def left_out(self) -> Mapping[str, int]:
        """Counts files with other endings, and those outside the class folders."""
        used = {path for pair in self.files.values() for path in pair}
        return of_folders(self.root, used=used, endings={ending for endings in SUFFIXES.values() for ending in endings})

    def image(self, example: Example) -> Image.Image:
        """Reads the image."""
        return read_image(self.root / self.files[example.id][0])

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Reads the sound."""
        return read_sound(self.root / self.files[example.id][1])

    def series(self, example: Example, modality: str) -> Signal:
        """Raises DataError, because there are no sensors."""
        raise DataError(f"{example.id} has no {modality}", remedy="use the image and audio encoders")


def open_data(data: DataSpec) -> Advance:
    """Opens pairs of images and sounds.

    Args:
        data: Its `root` is a folder with vision/<class>/*.jpg and sound/<class>/*.wav, or with these in train/ and
            test/; without these two, `test_fraction` of each class is held out, always the same examples. With
            `on_bad_example: skip`, a file may lack its partner: `check_examples` then reports and counts it.

    Raises:
        DataError: A folder is missing or empty, or a file has no partner.
    """
    root, missing_ok = data_root(data), data.on_bad_example == "skip"
    names = [name for name in ("train", "test") if (root / name).is_dir()]
    if len(names) == 1:
        raise DataError(f"{root} has only {names[0]}/", remedy="create both train/ and test/, or neither")
    pairs = {name: _pairs(root / name, missing_ok=missing_ok) for name in names or [""]}
    train = pairs["train" if names else ""]
    classes = tuple(sorted(train))
    if names:
        strange = sorted(set(pairs["test"]) - set(classes))
        if strange:
            raise DataError(f"the class {strange[0]} is in {root}/test but not in train", remedy="add it to train/")
    held_out = set() if names else _hold_out(train, fraction=data.own["test_fraction"])

    splits: dict[str, list[Example]] = {"train": [], "test": []}
    files: dict[str, tuple[str, str]] = {}
    entries: list[tuple[str, str]] = []
    for folder, by_class in pairs.items():
        for name, stems in sorted(by_class.items()):
            for stem, pair in sorted(stems.items()):
                identity = "/".join(part for part in (folder, name, stem) if part)
                split = folder or ("test" if (name, stem) in held_out else "train")
                fields = {"stem": stem, "class": name}
                splits[split].append(Example(id=identity, label=classes.index(name), fields=fields))
                image, sound = (str(path.relative_to(root)) for path in pair)
                files[identity] = (image, sound)
                entries.append((f"{split}:{identity}", ""))
    for split, examples in splits.items():
        if not examples:
            raise DataError(f"{root} has no examples for {split}", remedy="add at least two pairs to a class")
    return Advance(
        root=root,
        train=tuple(splits["train"]),
        test=tuple(splits["test"]),
        classes=classes,
        files=files,
        digest=listing_digest("advance", entries=entries),
    )


def _pairs(folder: Path, *, missing_ok: bool) -> dict[str, dict[str, tuple[Path, Path]]]:
    """Returns class -> stem -> (image, sound) of a folder with vision/ and sound/."""
    sides = {side: _files(folder / side, side) for side in SUFFIXES}
    other = {"vision": "sound", "sound": "vision"}
    for side, classes in sides.items():
        for name in sorted(set(classes) - set(sides[other[side]])):
            raise DataError(
                f"the class {name} is in {folder / side} but not in {folder / other[side]}"
                f"{alike(folder / other[side], name)}",
                remedy="create a folder of the same name for each class in vision/ and sound/",
            )
    pairs: dict[str, dict[str, tuple[Path, Path]]] = {}
    for name in sorted(sides["vision"]):
        vision, sound = sides["vision"][name], sides["sound"][name]
        for stem in sorted(set(vision) ^ set(sound)):
            if not missing_ok:
                side = "vision" if stem in vision else "sound"
                there, endings = folder / other[side] / name, ", ".join(SUFFIXES[other[side]])
                raise DataError(
                    f"{sides[side][name][stem]} has no partner {stem} ({endings}) in {there}{alike(there, stem)}",
                    remedy="restore the partner, remove the file, or set data.on_bad_example=skip",
                )
        pairs[name] = {
            stem: (
                vision.get(stem, folder / "vision" / name / f"{stem}.jpg"),
                sound.get(stem, folder / "sound" / name / f"{stem}.wav"),
            )
            for stem in sorted(set(vision) | set(sound))
        }
    return pairs


def _files(folder: Path, side: str) -> dict[str, dict[str, Path]]:
    """Returns class -> stem -> file of one side."""
    require_folder(folder, remedy="data.root needs vision/<class>/*.jpg and sound/<class>/*.wav")
    classes: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        require_unicode(path)
        files = classes.setdefault(path.name, {})
        for file in sorted(path.iterdir()):
            if file.suffix.lower() not in SUFFIXES[side] or file.name.startswith(".") or file.is_dir():
                continue
            require_unicode(file)
            if file.stem in files:
                raise DataError(f"{file} and {files[file.stem].name} have the same stem", remedy="rename one of them")
            files[file.stem] = file
        if not files:
            endings = ", ".join(SUFFIXES[side])
            raise DataError(f"the class folder {path} has no {endings}", remedy="fill it, or remove it on both sides")
    if not classes:
        raise DataError(f"{folder} has no class folders", remedy="put the files into one folder per class")
    return classes


def _hold_out(train: Mapping[str, Mapping[str, object]], *, fraction: float) -> set[tuple[str, str]]:
    """Chooses each class's test examples by the smallest hashes, whatever the order of files and the run's seed."""
    held_out: set[tuple[str, str]] = set()
    for name, stems in train.items():
        count = min(max(round(fraction * len(stems)), 1), len(stems) - 1)
        order = sorted(stems, key=lambda stem: derive("advance", "test", name, stem))
        held_out |= {(name, stem) for stem in order[:count]}
    return held_out
