"""Laws of the data made from Tux Paint's stamps, on a package of a few pictures that the tests write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.data.makers.tuxpaint import INSTALLED, make
from lwfed.data.protocol import open_source
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, SpecError
from tests.unit.cli.test_commands import call_json

CLASSES = {"animals/birds": 10, "food": 10}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unpacked package: twenty pictures in two classes, French for all, German for some, French sounds for some."""
    stamps = tmp_path / "package" / INSTALLED.relative_to("/")
    for folder, count in CLASSES.items():
        (stamps / folder).mkdir(parents=True)
        for n in range(count):
            stem = stamps / folder / f"it-{n}"
            Image.new("RGBA", (6, 8), (n * 20, 10, 10, 255)).save(stem.with_suffix(".png"))
            german = f"de.utf8=Ding {n}.\n" if n % 2 else "de.utf8= \n"
            stem.with_suffix(".txt").write_text(f"Thing {n}.\nfr.utf8=Une  chose {n}.\n{german}pt_BR.utf8=Coisa.\n")
            if n < 4:
                soundfile.write(f"{stem}_desc_fr.ogg", np.zeros(800, np.float32), 8_000)
    shutil.copy(stamps / "food/it-0.png", stamps / "food/it-0_mirror.png")
    (stamps / "food/it-0.svg").touch()
    (stamps / "food/drawn.svg").touch()
    (stamps / "food/drawn.txt").write_text("Drawn.")
    Image.new("RGB", (4, 4)).save(stamps / "food/untold.png")
    shutil.copy(stamps / "food/it-0_desc_fr.ogg", stamps / "food/it-0_desc_de.ogg")
    shutil.copy(stamps / "food/it-1_desc_fr.ogg", stamps / "food/it-1_desc.ogg")
    return tmp_path / "package"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "table.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_row_per_picture_and_language(package: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "data", source=package, languages=["fr", "de"])
    assert (made["pictures"], made["rows"], made["texts"]) == (20, 30, {"de": 10, "fr": 20})
    assert made["sounds"] == {"fr": 8} and made["classes"] == ["animals", "food"]
    assert made["splits"] == {s: sum(row["split"] == s for row in rows_of(tmp_path / "data")) for s in made["splits"]}
    assert made["left_out"] == {
        "vector pictures": 1, "mirrored pictures": 1, "pictures without texts": 1,
        "spoken descriptions without a text": 1,
    }  # fmt: skip
    row = next(row for row in rows_of(tmp_path / "data") if row["id"] == "fr/animals/birds/it-1.png")
    assert row | {"split": ""} == {
        "id": "fr/animals/birds/it-1.png", "image": "images/animals/birds/it-1.png", "text": "Une  chose 1.",
        "label": "animals", "site": "fr", "split": "", "picture": "animals/birds/it-1",
        "audio": "sounds/animals/birds/it-1_desc_fr.ogg",
    }  # fmt: skip
    source = open_source(DataSpec(source="table", root=str(tmp_path / "data")))
    example = next(e for s in ("train", "validation", "test") for e in source.examples(s) if e.id == row["id"])
    assert example.captions == ("Une chose 1.",) and example.fields["site"] == "fr"
    assert not {"image", "text", "audio"} & set(example.lacks)
    assert source.image(example).size == (6, 8) and len(source.waveform(example)[0]) == 800
    assert source.left_out() == {}


def test_all_languages_and_english(package: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "data", source=package / INSTALLED.relative_to("/"), languages=["all"])
    assert made["texts"] == {"de": 10, "en": 20, "fr": 20, "pt_BR": 20} and made["sounds"]["en"] == 1


def test_a_picture_is_in_one_split_that_languages_do_not_change(package: Path, tmp_path: Path) -> None:
    def splits(name: str, **keys: Any) -> dict[str, str]:
        make(tmp_path / name, source=package, **keys)
        found = {(row["picture"], row["split"]) for row in rows_of(tmp_path / name)}
        assert len(dict(found)) == len(found) == 20
        return dict(found)

    first = splits("a", languages=["all"])
    assert [list(first.values()).count(s) for s in ("train", "validation", "test")] == [14, 2, 4]
    assert splits("b", languages=["fr"]) == first
    assert splits("c", languages=["fr"], seed=1) != first
    assert set(splits("d", languages=["fr"], validation_fraction=0).values()) == {"train", "test"}


def test_a_used_folder_is_refused(package: Path, tmp_path: Path) -> None:
    make(tmp_path / "data", source=package, languages=["fr"])
    assert (tmp_path / "data/images/food/it-0.png").stat().st_nlink > 1
    with pytest.raises(SpecError, match=r"already has images"):
        make(tmp_path / "data", source=package, languages=["fr"])
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match="is no folder"):
        make(tmp_path / "file", source=package, languages=["fr"])


def test_what_is_wrong_is_named(package: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no stamps .*nowhere -> `apt install tuxpaint-stamps-default`.*--from"):
        make(tmp_path / "data", source=tmp_path / "nowhere")
    with pytest.raises(SpecError, match=r"language 'frr'; did you mean fr\? -> .*de, en, fr, pt_BR"):
        make(tmp_path / "data", source=package, languages=["frr"])
    with pytest.raises(SpecError, match="no language"):
        make(tmp_path / "data", source=package, languages=[])
    for keys in ({"test_fraction": 0.0}, {"test_fraction": 1.0}, {"validation_fraction": 0.8}):
        with pytest.raises(SpecError, match="fractions"):
            make(tmp_path / "data", source=package, languages=["fr"], **keys)
    (package / INSTALLED.relative_to("/") / "food/it-3.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"it-3\.txt is not UTF-8"):
        make(tmp_path / "data", source=package, languages=["fr"])
    assert not (tmp_path / "data").exists(), "nothing is written before all is checked"


def test_the_command(package: Path, tmp_path: Path) -> None:
    command = ["data", "make", "tuxpaint", str(tmp_path / "data"), "--from", str(package), "--languages", "fr,de"]
    made = call_json(*command)
    assert made["rows"] == 30 and made["folder"] == str(tmp_path / "data")
    ended = CliRunner().invoke(app, [*command[:3], str(tmp_path / "other"), *command[4:]])
    assert ended.exit_code == 0 and "left out: " in ended.stdout
