"""What is wrong is said in one line with its remedy and a numbered exit code, and earlier results stay as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import own_data
from tests.e2e.command import Ended, committed, contents, lwfed, succeed, together, write_spec

SPEC, DATA, CHECKPOINT, QUORUM, RESUME, DISK, NOT_FOUND = 10, 11, 12, 13, 15, 16, 19


def refused(ended: Ended, *, code: int, says: tuple[str, ...]) -> None:
    """Checks an error: its exit code, and one line that names the problem and, behind an arrow, the remedy.

    A value that does not fit its key has no remedy but to say what fits.
    """
    assert ended.code == code, ended.out + ended.err
    assert len(ended.errors) == 1 and (" -> " in ended.errors[0] or code == SPEC), ended.err
    assert "Traceback" not in ended.err
    for text in says:
        assert text in ended.errors[0], ended.errors[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "spec.yaml", "-o", "training.batch_sizes=4"], SPEC, ("training.batch_sizes`", "training.batch_size`")),
        (["run", "spec.yaml", "-o", "federation.clients=3"], SPEC, ("federation.clients`", "federation.num_clients`")),
        (["run", "spec.yaml", "-o", "model.encoders.image.blocks_per_stage=2"], SPEC, ("4 blocks", "sum to 2")),
        (["run", "spec.yaml", "-o", "model.encoders.text.blocks_per_stage=[1,1,0]"], SPEC, ("3 entries for 2 stages",)),
        (["run", "spec.yaml", "-o", "training.batch_size=many"], SPEC, ("training.batch_size", "'many'")),
        (["run", "none.yaml"], NOT_FOUND, ("none.yaml", "presets")),
        (["run", "shapes-layerwis"], NOT_FOUND, ("shapes-layerwise",)),
        (["run", "spec.yaml", "-o", "data.source=coco", "-o", "data.root=./none"], DATA, ("/none", "data.root")),
        (["run", "spec.yaml", "-o", "federation.num_clients=13"], DATA, ("client", "num_clients")),
        (["run", "spec.yaml", "-o", "federation.num_clients=25"], DATA, ("no data", "num_clients")),
        (["partition", "spec.yaml", "-o", "federation.num_clients=25"], DATA, ("no data", "num_clients")),
        (["run", "spec.yaml", "-o", "store.uri=ftp://there"], SPEC, ("ftp", "folder")),
        (["run", "spec.yaml", "--run-id", "a/b"], SPEC, ("a/b", "letters")),
        (["show", "firts"], NOT_FOUND, ("firts", "first")),
        (["rerun", "zzz", "--stage", "1"], NOT_FOUND, ("zzz",)),
        (["list", "--store", "./nowhere"], NOT_FOUND, ("nowhere", "lwfed run")),
        (["rerun", "first", "--stage", "3"], RESUME, ("stage 3", "1 to 2")),
        (["run", "spec.yaml", "--run-id", "first", "-o", "seed=1"], RESUME, ("first", "seed", "--run-id")),
        (["run", "spec.yaml", "--run-id", "first", "-o", "data.shapes.test=9"], RESUME, ("first", "data")),
        (["plan", "spec.yaml", "--device-memory", "much"], SPEC, ("much",)),
        (["step", "dance", "--task", "spec.yaml"], SPEC, ("dance", "train-client")),
    ],
)  # fmt: skip
def test_refused_before_any_work(arguments: list[str], code: int, says: tuple[str, ...], trained: Any) -> None:
    folder = trained[0]
    before = contents(folder)
    refused(lwfed(*arguments, cwd=folder), code=code, says=says)
    assert contents(folder) == before


def test_a_wrong_command_line_is_refused(trained: Any) -> None:
    ended = lwfed("run", "--nonsense", cwd=trained[0])
    assert ended.code == 2 and "--nonsense" in ended.err


@pytest.mark.slow
def test_a_corrupted_checkpoint_is_refused_and_fresh_trains_anew(
    copied: Path, trained: tuple[Path, Ended], tmp_path: Path
) -> None:
    """One byte of a block that stage 2 starts from, and elsewhere one digest in the manifest that names it."""
    other = tmp_path / "other"
    shutil.copytree(copied, other)
    stage = json.loads((copied / "lwfed-runs/runs/first/run.json").read_bytes())["stages"][0]["key"]
    manifest = f"lwfed-runs/stages/{stage}/checkpoint.json"
    block = json.loads((copied / manifest).read_bytes())["blocks"]["text.blocks.0"]["digest"]
    for folder in (copied, other):
        path = folder / f"lwfed-runs/blocks/sha256/{block}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    (other / manifest).write_bytes((other / manifest).read_bytes().replace(block.encode(), b"0" * 64))
    before = contents(copied / "lwfed-runs")
    again = ("rerun", "first", "--stage", "2", "--run-id", "again", "-o", "training.learning_rate=0.02")
    byte, digest = together(partial(lwfed, *again, cwd=copied), partial(lwfed, *again, cwd=other))
    refused(byte, code=CHECKPOINT, says=(block, "corrupted", "--fresh"))
    refused(digest, code=CHECKPOINT, says=("damaged", "--fresh"))
    after = contents(copied / "lwfed-runs")
    assert {name: after[name] for name in before} == before
    fresh = succeed("run", "spec.yaml", "--fresh", "--json", cwd=other)
    assert fresh.json["digest"] == trained[1].json["digest"]


@pytest.mark.slow
def test_divergence_names_the_clients_and_their_batches(copied: Path) -> None:
    """A rate at which weights overflow in a step: all clients fail, and the round is below its quorum."""
    store = copied / "lwfed-runs"
    before = contents(store)
    ended = lwfed("run", "spec.yaml", "-o", "training.learning_rate=1.0e+35", cwd=copied)
    refused(ended, code=QUORUM, says=("client-000", "client-001", "step 2", "batch 2 of client-001", "examples"))
    after = contents(store)
    assert {name: after[name] for name in before} == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "lwfed-test", str(folder)], capture_output=True, check=False
    )
    if os.geteuid() != 0 or mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_with_more_room(
    small_disk: Path, trained: tuple[Path, Ended], tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, store__uri=str(small_disk / "runs"))
    command = ("run", spec, "--run-id", "full", "--json")
    refused(lwfed(*command, cwd=tmp_path), code=DISK, says=("no space", "--run-id"))
    kept = {str(path): path.read_bytes() for path in committed(small_disk / "runs", "**/*.json")}
    assert kept
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert succeed(*command, cwd=tmp_path).json["digest"] == trained[1].json["digest"]
    assert all(Path(name).read_bytes() == content for name, content in kept.items())


@pytest.mark.slow
def test_a_truncated_image_and_an_unreadable_sound_are_named_or_skipped(tmp_path: Path) -> None:
    coco, advance = tmp_path / "coco", tmp_path / "advance"
    own_data.write_coco(coco)
    own_data.write_advance(advance)
    image, sound = own_data.truncate(coco / "train2017/000003.jpg"), own_data.truncate(advance / "sound/sea/2_sea.wav")
    text = write_spec(tmp_path, name="coco.yaml", **own_data.coco_spec(coco))
    audio = write_spec(tmp_path, name="advance.yaml", **own_data.advance_spec(advance))
    skip = ("-o", "data.on_bad_example=skip", "--json")
    named, unheard, skipped, skipped_sound = together(
        partial(lwfed, "run", text, "-o", "store.uri=./a", cwd=tmp_path),
        partial(lwfed, "run", audio, "-o", "store.uri=./b", cwd=tmp_path),
        partial(lwfed, "run", text, "-o", "store.uri=./c", *skip, cwd=tmp_path),
        partial(lwfed, "run", audio, "-o", "store.uri=./d", *skip, cwd=tmp_path),
    )
    refused(named, code=DATA, says=(str(image), "1 of 12 train", "on_bad_example=skip"))
    refused(unheard, code=DATA, says=(str(sound), "on_bad_example=skip"))
    for ended, name, store in ((skipped, "000003.jpg", "c"), (skipped_sound, "2_sea", "d")):
        assert ended.code == 0 and not ended.errors, ended.err
        assert "1 train example(s) cannot be read and are skipped" in ended.err and name in ended.err
        run = json.loads((tmp_path / store / "runs" / ended.json["run_id"] / "run.json").read_bytes())
        assert run["data"]["num_train"] == 11 and sum(run["data"]["clients"].values()) == 11

    (coco / "val2017/000021.jpg").unlink()
    gone = lwfed("run", text, cwd=tmp_path)
    refused(gone, code=DATA, says=("val2017/000021.jpg", "caption", "restore"))
    (advance / "vision/sea/1_sea.jpg").unlink()
    refused(lwfed("partition", audio, cwd=tmp_path), code=DATA, says=("1_sea.wav", "no partner"))
