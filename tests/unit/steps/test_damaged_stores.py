"""Whatever is done to a file of a store: it is reported by name or has no effect; no command ends in another digest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lwfed.cli import history
from lwfed.run.runs import Options
from lwfed.types.errors import LwfedError
from tests.damage import altered, damaged
from tests.tiny import run_tiny

TIMES = 6
"""Number of damaged stores per kind of file."""
RUN = "tiny-run"
ROUNDS = ("stages.rounds=[1,1]", "evaluation.batch_size=8")
KINDS = (
    "runs/*/run.json", "runs/*/summary.json", "stages/*/plan.json", "stages/*/checkpoint.json", "stages/*/record.json",
    "stages/*/rounds/*/*.json", "stages/*/rounds/*/updates/*/*", "blocks/sha256/*",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The store of a finished run of two stages with a round each, and the run's digest."""
    root = tmp_path_factory.mktemp("whole") / "store"
    return root, run_tiny(root, *ROUNDS, options=Options(run_id=RUN)).summary["digest"]


def damage(path: Path, rng: np.random.Generator) -> None:
    """Removes a file, empties it, or changes its bytes or values."""
    content = path.read_bytes()
    match rng.integers(8):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2 | 3:
            path.write_bytes(damaged(content, rng))
        case _ if path.suffix == ".json":
            path.write_text(json.dumps(altered(json.loads(content), rng)))
        case _:
            changed = bytearray(content)
            changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)


def ends(command: Callable[[], Any], *names: str) -> Any:
    """Runs a command. Returns its result, or None if it is refused with a numbered code and a name of the object."""
    try:
        return command()
    except LwfedError as error:
        message = str(error)
        assert error.exit_code in (10, 11, 12, 13, 15, 19) and error.remedy and message.isprintable(), message
        assert any(name in message for name in names), (message, names)
        return None


def names_of(path: Path, store: Path) -> tuple[str, ...]:
    """Returns what a message may call a file of a store: by its key, its digest, its stage or its run."""
    key = path.relative_to(store).as_posix()
    return key, RUN, *(part[:12] for part in key.split("/")[1:3] if len(part) > 12), str(store)


def check(store: Path, digest: str, path: Path, exported: Path, *, resumed: bool) -> None:
    """Runs every reading command, then the run again, from its last stage if `resumed`."""
    names = names_of(path, store)
    for as_json in (True, False):
        ends(lambda as_json=as_json: history.list_runs(store=str(store), as_json=as_json), *names)
        ends(lambda as_json=as_json: history.show(RUN, store=str(store), as_json=as_json), *names)
    place = store.parent / "place"
    ends(
        lambda: history.report(RUN, output=place / "report.html", mlflow=False, store=str(store), as_json=True), *names
    )
    export = place / "export"
    ends(lambda: history.export(RUN, export, None, False, store=str(store), as_json=True), *names)
    for file in exported.rglob("*.safetensors") if export.exists() else ():
        made, wanted = load_file(export / file.relative_to(exported)), load_file(file)
        assert made.keys() == wanted.keys() and all(bool((made[name] == wanted[name]).all()) for name in wanted)
    if resumed:
        for pattern in ("runs/*/summary.json", "stages/*/checkpoint.json", "stages/*/record.json"):
            for committed in store.glob(pattern):
                if committed != path and '"stage": 1' not in committed.read_text():
                    committed.unlink()
    finished = ends(lambda: run_tiny(store, *ROUNDS, options=Options(run_id=RUN)), *names)
    assert finished is None or finished.summary["digest"] == digest


@pytest.fixture(scope="module")
def exported(whole: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "export"
    history.export(RUN, folder, None, False, store=str(whole[0]), as_json=True)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_of_a_store_is_named_or_changes_nothing(
    whole: tuple[Path, str], exported: Path, tmp_path: Path, kind: str
) -> None:
    rng, (clean, digest) = np.random.default_rng(KINDS.index(kind)), whole
    for number in range(TIMES):
        store = tmp_path / str(number) / "store"
        shutil.copytree(clean, store)
        files = sorted(store.glob(kind))
        path = files[int(rng.integers(len(files)))]
        damage(path, rng)
        check(store, digest, path, exported, resumed=number % 3 == 0)


FOUND: dict[str, tuple[str, dict[str, Any] | None]] = {
    "no object": ("runs/*/summary.json", None),
    "no digest": ("runs/*/summary.json", {"digest": 3}),
    "a metric that is no number": ("stages/*/record.json", {"metrics": {"train/loss": float("nan")}}),
    "a metric above any float": ("stages/*/record.json", {"wall_s": 10**400}),
    "no number of classes": ("stages/*/plan.json", {"num_classes": {}}),
    "no model": ("runs/*/run.json", {"model": {"encoders": 3}}),
    "no spec": ("runs/*/run.json", {"spec": {"trainig": 1}}),
    "no depths": ("runs/*/run.json", {"depths": {}}),
    "no blocks": ("stages/*/checkpoint.json", {"blocks": 3}),
}


@pytest.mark.parametrize(("kind", "changes"), FOUND.values(), ids=FOUND)
def test_what_was_found_is_named(
    whole: tuple[Path, str], exported: Path, tmp_path: Path, kind: str, changes: dict[str, Any] | None
) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    path = sorted(store.glob(kind))[-1]
    values = 3 if changes is None else {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(values))
    check(store, whole[1], path, exported, resumed=False)


def test_a_finished_run_without_its_result_is_not_exported_as_an_earlier_stage(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    last = json.loads((store / f"runs/{RUN}/run.json").read_text())["stages"][-1]["key"]
    (store / f"stages/{last}/checkpoint.json").unlink()
    with pytest.raises(LwfedError, match="stage 2") as caught:
        history.export(RUN, tmp_path / "export", None, False, store=str(store), as_json=True)
    assert caught.value.exit_code == 12
