"""Laws of the order of mistakes: an empty spec starts nothing, and weights are checked before stage cuts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.types.errors import DataError, NotFoundError, SpecError
from tests.tiny import VALUES


@pytest.mark.parametrize("content", ["", "{}\n", "# nothing yet\n", "null"])
@pytest.mark.parametrize("command", ["run", "plan", "partition"])
def test_an_empty_spec_starts_nothing(
    command: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text(content)
    ended = CliRunner().invoke(app, [command, "empty.yaml"])
    assert isinstance(ended.exception, SpecError) and "lwfed presets" in ended.exception.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["empty.yaml"]


@pytest.mark.parametrize("command", ["run", "plan", "partition"])
def test_an_empty_name_is_no_default(command: str) -> None:
    assert isinstance(CliRunner().invoke(app, [command, ""]).exception, SpecError | NotFoundError)


@pytest.mark.parametrize("option", ["--examples", "--tokens"])
def test_no_examples_are_not_the_default_number(option: str) -> None:
    assert CliRunner().invoke(app, ["plan", option, "0"]).exit_code == 2


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("cuts", ["5", "[1, 5]", "[2, 2]"])
@pytest.mark.parametrize("weights", ["folder", "file.bin", "missing.bin", "./missing"])
def test_a_mistake_in_the_stages_hides_no_mistake_in_the_weights(
    command: str, cuts: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/pytorch_model.bin").write_bytes(b"x")
    Path("folder/config.json").write_text(json.dumps({"model_type": "distilbert", "n_layers": 2}))
    Path("file.bin").write_bytes(b"x")
    Path("spec.json").write_text(json.dumps(VALUES))
    encoder = f"model.encoders.text={{family: distilbert, weights: {weights}, blocks_per_stage: {cuts}}}"
    ended = CliRunner().invoke(app, [command, "spec.json", "-o", encoder])
    assert isinstance(ended.exception, DataError) and weights.removeprefix("./") in str(ended.exception)
    assert not Path("lwfed-runs").exists()
