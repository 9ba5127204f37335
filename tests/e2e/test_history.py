"""What has run can be looked at, trained again from a stage, and taken elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lwfed.spec.load import preset_names
from tests.e2e.command import Ended, contents, environment, succeed, together

STAGE_KEYS = {"stage", "digest", "metrics", "ledger"}
NEEDS_NO_TORCH = """
import sys
from lwfed.cli.main import main
for arguments in {calls}:
    sys.argv = ["lwfed", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
    heavy = {{"torch", "timm", "transformers", "mlflow", "matplotlib", "pandas", "scipy"}} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""


def test_the_last_json_line_of_a_run_is_complete(trained: tuple[Path, Ended]) -> None:
    folder, ended = trained
    told = ended.json
    assert told.keys() >= {"run_id", "digest", "metrics", "ledger", "stages"} and told["run_id"] == "first"
    assert len(ended.out.splitlines()) == 1 and "round 1/2" in ended.err
    assert [stage["stage"] for stage in told["stages"]] == [1, 2] and told["digest"] == told["stages"][-1]["digest"]
    for ledger in (told["ledger"], *(stage["ledger"] for stage in told["stages"])):
        assert ledger["predicted"] and ledger["measured"]
    for stage in told["stages"]:
        assert stage.keys() >= STAGE_KEYS and "test/t2i/R@1" in stage["metrics"] and len(stage["digest"]) == 64
        assert stage["ledger"]["measured"]["bytes_up"] == stage["ledger"]["predicted"]["exchanged_bytes"]
    assert told["metrics"] == told["stages"][-1]["metrics"]
    assert (folder / "lwfed-runs/runs/first/report.html").stat().st_size > 10_000


def test_what_was_trained_is_not_trained_again(copied: Path, trained: tuple[Path, Ended]) -> None:
    """A second run, list, show and plan only read what is committed, and do without torch."""
    calls = [["run", "spec.yaml", "--json"], ["run", "spec.yaml", "--run-id", "first"], ["list", "--json"],
             ["show", "latest", "--json"], ["show", "first"], ["plan", "spec.yaml", "--json"], ["presets"],
             ["partition", "spec.yaml", "--json"], ["--help"]]  # fmt: skip
    before = contents(copied / "lwfed-runs")
    script = copied / "light.py"
    script.write_text(NEEDS_NO_TORCH.format(calls=calls))
    ended = _succeed_script(script, cwd=copied)
    assert contents(copied / "lwfed-runs") == before
    assert ended.out.count("stages are committed") == 1 and "stages are committed" in ended.err
    jsons = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    again, listed, shown, planned, shared = jsons
    assert again["digest"] == trained[1].json["digest"] and all(stage["reused"] for stage in again["stages"])
    assert [run["run_id"] for run in listed["runs"]] == ["first"] and listed["runs"][0]["status"] == "finished"
    assert listed["runs"][0]["digest"] == again["digest"]
    assert [item["round"] for item in shown["round_records"]] == [1, 2, 1] and shown["run"]["run_id"] == "first"
    assert [row["stage"] for row in planned["rows"]] == [1, 2, "end_to_end", "total"]
    assert [client["num_examples"] for client in shared["clients"]] == [12, 12]
    assert all(name in ended.out for name in preset_names())


def _succeed_script(script: Path, *, cwd: Path) -> Ended:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_rerun_from_a_stage_and_fresh(copied: Path, trained: tuple[Path, Ended], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(copied, other)
    store = copied / "lwfed-runs"
    before = contents(store)
    rate = ("-o", "training.learning_rate=0.0015")
    changed, only = together(
        partial(succeed, "rerun", "first", "--stage", "2", *rate, "--run-id", "changed", "--json", cwd=copied),
        partial(succeed, "rerun", "first", "--stage", "1", *rate, "--only", "--run-id", "only", "--json", cwd=other),
    )
    same, fresh = together(
        partial(succeed, "rerun", "first", "--stage", "2", "--run-id", "same", "--json", cwd=other),
        partial(succeed, "run", "spec.yaml", "--fresh", "--run-id", "fresh", "--json", cwd=copied),
    )
    first = trained[1].json["stages"]
    # another rate: stage 1 is the parent's, stage 2 is trained again
    assert changed.json["run_id"] == "changed" and changed.json["status"] == "finished"
    assert [stage["digest"] == first[n]["digest"] for n, stage in enumerate(changed.json["stages"])] == [True, False]
    run = json.loads((store / "runs/changed/run.json").read_bytes())
    assert run["parent"] == {"run_id": "first", "stage": 2}
    assert run["stages"][0] == json.loads((store / "runs/first/run.json").read_bytes())["stages"][0]
    # one stage alone
    assert only.json["status"] == "partial" and [stage["stage"] for stage in only.json["stages"]] == [1]
    assert only.json["digest"] != first[0]["digest"]
    # the same again, asked for by name: trained again, to the same digest
    for again, reused in ((fresh.json, [False, False]), (same.json, [True, False])):
        assert [stage["digest"] for stage in again["stages"]] == [stage["digest"] for stage in first]
        assert [stage["reused"] for stage in again["stages"]] == reused
    after = contents(store)
    assert {name: after[name] for name in before} == before  # nothing earlier is touched
    listed = succeed("list", cwd=copied).out
    assert "from first, stage 2" in listed and "fresh" in listed


@pytest.mark.slow
def test_report_export_and_doctor(copied: Path) -> None:
    store = copied / "lwfed-runs"
    weights = contents(store / "blocks")
    report, export, doctor = together(
        partial(succeed, "report", "first", "--output", "out/report.html", "--json", cwd=copied),
        partial(succeed, "export", "latest", "exported", "--with-test-data", "--json", cwd=copied),
        partial(succeed, "doctor", "--json", cwd=copied),
    )
    page = (copied / "out/report.html").read_text(encoding="utf-8")
    assert report.json["report"] and page.lstrip().lower().startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page  # self-contained
    assert export.json["stage"] == 2
    exported = list((copied / "exported").rglob("*.safetensors"))
    tensors = [tensor for path in exported for tensor in load_file(path).values()]
    assert tensors and all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    assert doctor.json["ok"] and not [item for item in doctor.json["findings"] if item["level"] == "fail"]
    assert contents(store / "blocks") == weights
