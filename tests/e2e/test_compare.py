"""`lwfed compare` as a user types it: it trains only what is missing, outlives an interrupt, says what is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Ended, committed, contents, environment, lwfed, start, succeed, until, wait

NEEDS_NO_TORCH = """
import sys
from lwfed.cli.main import main
sys.argv = ["lwfed", {arguments}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert not {{"torch", "timm", "transformers", "mlflow", "matplotlib.pyplot", "pandas", "scipy"}} & sys.modules.keys()
"""
FILES = {
    f"{name}.{kind}"
    for name in ("compare", "quality-rounds", "quality-bytes", "quality-flops", "memory-stages")
    for kind in ("svg", "png")
} | {"compare.html", "compare.json"}


@pytest.mark.slow
def test_it_trains_what_is_missing_and_reads_the_rest(copied: Path, trained: tuple[Path, Ended]) -> None:
    command = ["compare", "spec.yaml", "--strategies", "end_to_end,layerwise", "--seeds", "0,1", "--budget",
               "bytes=200kB", "--json"]  # fmt: skip
    first = succeed(*command, cwd=copied)
    assert "1 of 4 runs are committed already" in first.err and "run 4 of 4: layerwise, seed 1" in first.err
    told = first.json
    assert told["metric"] == "test/t2i/R@1" and told["name"] == "tiny"
    whole, layerwise = told["groups"]
    assert (whole["label"], whole["seeds"], layerwise["seeds"]) == ("end to end", [0, 1], [0, 1])
    assert layerwise["runs"][0] == "first" and layerwise["digests"][0] == trained[1].json["digest"]
    assert min(layerwise["less"].values()) > 1 and set(whole["less"].values()) == {1.0}
    assert [row["label"] for row in told["budgets"]] == ["end to end", "layerwise"]
    assert all(row["rounds"] > 0 for row in told["budgets"])
    assert {path.name for path in (copied / "compare-tiny").iterdir()} == FILES
    page = (copied / "compare-tiny/compare.html").read_text(encoding="utf-8")
    written = json.loads((copied / "compare-tiny/compare.json").read_text(encoding="utf-8"))
    assert [point["round"] for point in written["curves"]["layerwise"]] == [1, 2, 3]
    assert written["curves"]["layerwise"][-1]["quality"] == layerwise["quality"]
    assert "2 strategies side by side" in page and all(run in page for run in whole["runs"] + layerwise["runs"])

    before = contents(copied / "lwfed-runs")
    script = copied / "light.py"
    script.write_text(NEEDS_NO_TORCH.format(arguments=", ".join(map(repr, command))))
    again = subprocess.run(
        [sys.executable, str(script)], cwd=copied, env=environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 of 4 runs are committed already" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == told
    named = ",".join(whole["runs"] + layerwise["runs"])
    read = succeed("compare", "--runs", named, "--budget", "bytes=200kB", "--json", cwd=copied).json
    assert read == told
    assert contents(copied / "lwfed-runs") == before
    assert (copied / "compare-tiny/compare.html").read_text(encoding="utf-8") == page

    other = succeed("run", "spec.yaml", "-o", "data.shapes.test=6", "--run-id", "other", "--json", cwd=copied)
    assert other.json["run_id"] == "other"
    ended = lwfed("compare", "--runs", "first,other", cwd=copied)
    assert ended.code == 10 and "num_test is 8 (first) and 6 (other)" in ended.errors[0]
    assert "--force" in ended.errors[0]
    assert "comparable" in succeed("compare", "--runs", "first,other", "--force", "-O", "forced", cwd=copied).out


@pytest.mark.slow
def test_interrupted_it_keeps_what_is_finished_and_goes_on(copied: Path) -> None:
    long = ["-o", "progressive:training.local_epochs=60"]
    command = ["compare", "spec.yaml", "--strategies", "layerwise,progressive", *long, "--json"]
    before = len(committed(copied / "lwfed-runs", "rounds/001/checkpoint.json"))
    running = start(*command, cwd=copied)
    until(lambda: len(committed(copied / "lwfed-runs", "rounds/001/checkpoint.json")) > before, process=running)
    running.send_signal(signal.SIGINT)
    ended = wait(running)
    assert ended.code == 130 and "the same command; 1 of 2 runs are done" in ended.err, ended.err
    kept = {name: data for name, data in contents(copied / "lwfed-runs/stages").items() if "/updates/" not in name}
    told = succeed(*command, cwd=copied).json
    assert [group["label"] for group in told["groups"]] == ["layerwise", "progressive"]
    after = contents(copied / "lwfed-runs/stages")
    assert {name: after[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["compare", "spec.yaml", "--strategies", "sideways"], 10, ("sideways", "layerwise")),
        (["compare", "spec.yaml", "--budget", "time=3h"], 10, ("time=3h", "bytes=200MB")),
        (["compare", "spec.yaml", "--metric", "test/accuracy"], 10, ("test/accuracy", "test/t2i/R@1")),
        (["compare", "spec.yaml", "--seeds", "one"], 10, ("one", "0,1,2")),
        (["compare", "spec.yaml", "-o", "end_to_end:training.batch_sizes=4"], 10, ("training.batch_size`",)),
        (["compare", "spec.yaml", "--runs", "first"], 10, ("--runs", "one of them")),
        (["compare", "--runs", "firts"], 19, ("firts", "first")),
        (["compare", "--runs", "first", "--metric", "test/none"], 10, ("test/none", "known: ", "test/t2i/R@1")),
        (["compare", "--runs", "first", "--output", "spec.yaml"], 10, ("spec.yaml is a file", "--output")),
    ],
)
def test_refused_before_any_work(
    arguments: list[str], code: int, says: tuple[str, ...], trained: tuple[Path, Ended]
) -> None:
    before = contents(trained[0])
    ended = lwfed(*arguments, cwd=trained[0])
    assert ended.code == code and len(ended.errors) == 1, ended.out + ended.err
    assert all(text in ended.errors[0] for text in says), ended.errors[0]
    assert contents(trained[0]) == before
