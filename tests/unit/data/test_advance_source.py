from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from lwfed.data.batches import check_examples, eval_batches
from lwfed.data.digests import FileDigests, list_files, version_of
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import open_source
from lwfed.data.sources.advance import Advance, open_data
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError

SETTINGS = InputSettings(modalities=("audio", "image"), image_size=16, num_mel_bins=16, frames=40)


def open_advance(root: Path, *, test_fraction: float, missing_ok: bool = False) -> Advance:
    bad = "skip" if missing_ok else "fail"
    return open_data(DataSpec(source="advance", root=str(root), test_fraction=test_fraction, on_bad_example=bad))


def tone(rate: int, *, channels: int = 1, seconds: float = 0.5, pitch: float = 440.0) -> np.ndarray:
    """Returns a tone [N, channels]."""
    wave = 0.4 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


def write_advance(root: Path, *, per_class: int = 5) -> None:
    """Writes two classes, one with 8 kHz mono sounds and one with 44.1 kHz stereo ones."""
    for name, rate, channels in (("beach", 8_000, 1), ("forest", 44_100, 2)):
        (root / "vision" / name).mkdir(parents=True)
        (root / "sound" / name).mkdir(parents=True)
        for n in range(per_class):
            Image.new("RGB", (20, 20), (n * 20, 0, 0)).save(root / "vision" / name / f"site{n}_a.jpg")
            soundfile.write(root / "sound" / name / f"site{n}_a.wav", tone(rate, channels=channels), rate)


def test_pairs_of_any_rate_and_number_of_channels(tmp_path: Path) -> None:
    write_advance(tmp_path)
    (tmp_path / "vision" / "beach" / "notes.txt").write_text("left alone")
    source = open_source(DataSpec(source="advance", root=str(tmp_path), test_fraction=0.4))
    train, test = source.examples("train"), source.examples("test")
    assert (source.classes, len(train), len(test)) == (("beach", "forest"), 6, 4)
    assert not {example.id for example in train} & {example.id for example in test}
    assert {example.label for example in test} == {0, 1}
    by_class = {example.fields["class"]: example for example in train}
    beach, forest = (source.waveform(by_class[name]) for name in ("beach", "forest"))
    assert (beach[0].shape, beach[1], forest[0].shape, forest[1]) == ((4_000,), 8_000, (22_050,), 44_100)
    batch = next(eval_batches(source, examples=train, settings=SETTINGS, batch_size=6, workers=0))
    assert batch.inputs["audio"].shape == (6, 40, 16)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    # one tone at two rates is one tone after resampling: the peak's bin is the same
    loudest = batch.inputs["audio"].mean(dim=1).argmax(dim=1)
    assert len(set(loudest.tolist())) == 1


def test_the_held_out_share_is_always_the_same(tmp_path: Path) -> None:
    write_advance(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = (open_advance(tmp_path / name, test_fraction=0.4) for name in "ab")
    assert (one.test, one.train, one.version()) == (two.test, two.train, two.version())
    assert open_advance(tmp_path / "a", test_fraction=0.2).version() != one.version()
    versions = [version_of(source, list_files(source, FileDigests())) for source in (one, two)]
    assert versions[0] == versions[1]
    sound = tmp_path / "b" / "sound" / "beach" / "site0_a.wav"
    sound.write_bytes(bytes(sound.stat().st_size))
    assert version_of(two, list_files(two, FileDigests())) != versions[0]


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    write_advance(tmp_path / "train", per_class=3)
    with pytest.raises(DataError, match=r"only train/ -> .*both"):
        open_advance(tmp_path, test_fraction=0.2)
    write_advance(tmp_path / "test", per_class=1)
    source = open_advance(tmp_path, test_fraction=0.2)
    assert (len(source.train), len(source.test)) == (6, 2)
    assert source.test[0].id == "test/beach/site0_a"
    for side in ("vision", "sound"):
        (tmp_path / "test" / side / "beach").rename(tmp_path / "test" / side / "desert")
    with pytest.raises(DataError, match=r"the class desert is in .*test but not in train"):
        open_advance(tmp_path, test_fraction=0.2)


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    write_advance(tmp_path)
    (tmp_path / "sound" / "beach" / "site3_a.wav").unlink()
    with pytest.raises(
        DataError,
        match=r"vision/beach/site3_a.jpg has no partner site3_a \(.wav, .flac, .ogg\) in .*sound/beach -> res",
    ):
        open_advance(tmp_path, test_fraction=0.2)
    source = open_advance(tmp_path, test_fraction=0.2, missing_ok=True)
    examples = (*source.train, *source.test)
    bad = check_examples(source, examples=examples, modalities=("audio", "image"))
    assert list(bad) == ["beach/site3_a"]
    shutil.rmtree(tmp_path / "sound" / "beach")
    with pytest.raises(DataError, match=r"the class beach is in .*vision but not in .*sound -> .*vision/ and sound/"):
        open_advance(tmp_path, test_fraction=0.2)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    write_advance(tmp_path)
    (tmp_path / "vision" / "city").mkdir()
    with pytest.raises(DataError, match=r"class folder .*vision/city .*no .jpg, .jpeg, .png -> fill it"):
        open_advance(tmp_path, test_fraction=0.2)
    shutil.rmtree(tmp_path / "sound")
    shutil.rmtree(tmp_path / "vision")
    (tmp_path / "vision").mkdir()
    with pytest.raises(DataError, match=r"vision .*no class folders"):
        open_advance(tmp_path, test_fraction=0.2)
    (tmp_path / "vision").rmdir()
    with pytest.raises(DataError, match=r"there is no folder .*vision -> data.root needs vision/<class>"):
        open_advance(tmp_path, test_fraction=0.2)


def test_two_files_of_one_stem_are_named(tmp_path: Path) -> None:
    write_advance(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "vision" / "beach" / "site0_a.png")
    with pytest.raises(DataError, match=r"site0_a.png and site0_a.jpg have .*stem"):
        open_advance(tmp_path, test_fraction=0.2)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content[:-100], "is truncated: its last 100 bytes are missing"),
        (lambda content: b"no sound at all", "cannot be read"),
        (lambda content: b"", "cannot be read"),
    ],
)
def test_a_damaged_sound_is_named_in_one_line(tmp_path: Path, damage, problem: str) -> None:
    write_advance(tmp_path)
    path = tmp_path / "sound" / "forest" / "site0_a.wav"
    path.write_bytes(damage(path.read_bytes()))
    source = open_advance(tmp_path, test_fraction=0.2)
    example = next(example for example in (*source.train, *source.test) if example.id == "forest/site0_a")
    with pytest.raises(DataError, match=f"sound/forest/site0_a.wav {problem}.* -> fix") as caught:
        source.waveform(example)
    assert "\n" not in str(caught.value)


def test_sounds_without_samples_or_with_nan_are_named(tmp_path: Path) -> None:
    write_advance(tmp_path, per_class=2)
    empty, broken = (tmp_path / "sound" / "beach" / f"site{n}_a.wav" for n in (0, 1))
    soundfile.write(empty, np.zeros((0, 1)), 8_000)
    soundfile.write(broken, np.array([[0.0], [np.nan]]), 8_000, subtype="FLOAT")
    source = open_advance(tmp_path, test_fraction=0.5)
    bad = check_examples(source, examples=(*source.train, *source.test), modalities=("audio",))
    assert set(bad) == {"beach/site0_a", "beach/site1_a"}
    assert str(empty) in bad["beach/site0_a"] and "empty" in bad["beach/site0_a"]
    assert str(broken) in bad["beach/site1_a"] and "not finite" in bad["beach/site1_a"]


@pytest.mark.parametrize(
    ("there", "hint"),
    [
        ("site0_a.mp3", "site0_a.mp3 is there"), ("SITE0_A.wav", "upper and lower case"),
        ("Site0_a.mp3", "upper and lower case"),
    ],
)  # fmt: skip
def test_a_partner_of_another_name_is_told(tmp_path: Path, there: str, hint: str) -> None:
    write_advance(tmp_path)
    sounds = tmp_path / "sound" / "beach"
    (sounds / "site0_a.wav").rename(sounds / there)
    with pytest.raises(DataError, match=rf"\(.*\.jpg.*\)|\(\.wav, \.flac, \.ogg\).*{hint}"):
        open_advance(tmp_path, test_fraction=0.2)


def test_folders_named_as_files_are_no_examples(tmp_path: Path) -> None:
    write_advance(tmp_path)
    before = open_advance(tmp_path, test_fraction=0.2)
    for side, ending in (("vision", "jpg"), ("sound", "wav")):
        (tmp_path / side / "beach" / f"more.{ending}").mkdir()
    assert open_advance(tmp_path, test_fraction=0.2) == before
    sound = tmp_path / "sound" / "beach" / "site0_a.wav"
    sound.unlink()
    sound.mkdir()
    with pytest.raises(DataError, match=r"site0_a.jpg has no partner .*site0_a.wav is there"):
        open_advance(tmp_path, test_fraction=0.2)
    source = open_advance(tmp_path, test_fraction=0.2, missing_ok=True)
    assert list_files(source, FileDigests())["sound/beach/site0_a.wav"] == "missing"
    examples = (*source.examples("train"), *source.examples("test"))
    assert list(check_examples(source, examples=examples, modalities=("audio", "image"), workers=0)) == [
        "beach/site0_a"
    ]
