"""`lwfed sweep` as a user types it: variants are trained, ranked by validation, and resumed after an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import committed, lwfed, processes_of, start, succeed, until, wait, write_spec

GRID = ("--grid", "training.learning_rate=1e-4,1e-2", "--grid", "strategy=layerwise,end_to_end")
SWEEP = ("sweep", "spec.yaml", *GRID, "--study", "s", "--json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_spec(tmp_path, data__shapes__validation=8)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_is_interrupted_and_taken_up_again(folder: Path) -> None:
    process = start(*SWEEP, "--no-prune", cwd=folder)
    until(lambda: committed(folder / "lwfed-runs", "rounds/*/round.json"), process=process, timeout=200)
    process.terminate()
    assert wait(process).code != 0
    assert not processes_of(folder), "no run is left behind"
    found = succeed(*SWEEP, "--no-prune", "--jobs", "2", cwd=folder).json
    assert [trial["status"] for trial in found["trials"]] == ["finished"] * 4
    assert len({tuple(trial["values"].values()) for trial in found["trials"]}) == 4
    values = [trial["value"] for trial in found["trials"]]
    assert values == sorted(values, reverse=True) and found["best"] == found["trials"][0]
    for trial in found["trials"]:
        shown = succeed("show", trial["run_id"], "--json", cwd=folder).json
        assert shown["status"] == "finished" and shown["run"]["strategy"] == trial["values"]["strategy"]
        assert shown["round_records"][-1]["metrics"]["validation/t2i/R@1"] == trial["value"]
    files = {path.name for path in (folder / "sweep-s").iterdir()}
    assert files >= {"sweep.html", "sweep.json", "trials.svg", "key-strategy.png", "s-t000.log"}
    again = succeed(*SWEEP, "--no-prune", "--show", cwd=folder).json
    assert again == found
    best = succeed(*found["command"].split()[1:], "--json", cwd=folder).json
    assert best["digest"] == succeed("show", found["best"]["run_id"], "--json", cwd=folder).json["digest"]


@pytest.mark.slow
def test_a_variant_that_fails_does_not_end_the_sweep(folder: Path) -> None:
    grid = ("--grid", "federation.num_clients=2,13")  # 13 leave a client with a single example
    found = succeed("sweep", "spec.yaml", *grid, "--json", cwd=folder).json
    assert [(trial["status"], trial["values"]) for trial in found["trials"]] == [
        ("finished", {"federation.num_clients": "2"}),
        ("failed", {"federation.num_clients": "13"}),
    ]
    assert "exit code 11" in found["trials"][1]["reason"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--grid", "training.learning_rat=1,2"], 10),
        (["--grid", "training.learning_rate=1e-4,fast"], 10),
        (["--search", "training.batch_size=1..8"], 10),
        (["--grid", "seed=1,2", "--grid", "seed=3"], 10),
        (["--grid", "data.workers=0,1"], 10),
        (["--grid", "training.batch_size=4,8", "--metric", "test/t2i/R@1"], 10),
        (["--grid", "training.batch_size=4,8", "--metric", "validation/accuracy"], 10),
        (["--grid", "training.batch_size=4,8", "-o", "data.shapes.validation=0"], 10),
        (["--grid", "training.batch_size=4,8", "--study", "a/b"], 10),
        (["--grid", "training.batch_size=4,8", "--storage", "sqlite:////none/at/all.db"], 10),
        ([], 10),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_work(folder: Path, arguments: list[str], code: int) -> None:
    ended = lwfed("sweep", "spec.yaml", *arguments, cwd=folder)
    assert ended.code == code and len(ended.errors) == 1 and "Traceback" not in ended.err, ended.err
    assert not (folder / "lwfed-runs").exists()
