"""Laws of runs on data with holes: what examples lack is counted, and what cannot work is refused by name first."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.data.incomplete import examples_with, usable_of
from lwfed.data.protocol import Example
from lwfed.formats import lacks_text
from lwfed.run import runs
from lwfed.run.events import Event, Warning
from lwfed.run.runs import Options
from lwfed.spec.load import to_values
from lwfed.spec.run import RunSpec
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import DataError, SpecError
from tests.holes import SUPERVISED, on, rows_of, write_holes
from tests.tables import write_jsonl
from tests.tiny import prepared, run_tiny, tiny_spec
from tests.unit.steps.test_prepare_run import there

TOO_FEW = "examples with fewer than 2 of the model's modalities"


def spec_of(folder: Path, *overrides: str, data: dict[str, Any] | None = None) -> RunSpec:
    return tiny_spec(folder / "store", *on(folder / "data", *overrides, data=data))


def test_what_training_examples_lack_is_counted_by_client(tmp_path: Path) -> None:
    """Of a quarter held out, nothing counts; those with a single modality are left out."""
    rows = rows_of(tmp_path / "data", count=60)
    rows[0] |= {"text": None, "audio": None}
    (tmp_path / "data/00.wav").unlink()
    write_jsonl(tmp_path / "data", rows)
    for held_out in ("0", "0.25"):
        spec = spec_of(tmp_path, f"evaluation.holdout_fraction={held_out}")
        run = prepared(spec, store=LocalStore(tmp_path / held_out))
        assert run.data.left_out == {TOO_FEW: 1} and run.data.num_train == 47
        assert sum(run.data.clients.values()) == (47 if held_out == "0" else 35)
        assert run.data.lacks.keys() == {"client-000", "client-001"}
        if held_out == "0":
            trained = [row for row in rows[1:] if row["split"] == "train"]
            for client, site in (("client-000", "north"), ("client-001", "south")):
                mine = [row for row in trained if row["site"] == site]
                lacked = Counter(m for row in mine for m in ("audio", "image", "text") if row[m] is None)
                assert run.data.lacks[client] == dict(lacked)
        again = runs.read_run(LocalStore(tmp_path / held_out), run.run_id)
        assert again.data.lacks == run.data.lacks


def test_complete_data_lack_nothing_and_plans_stay_as_they_were(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", lacks=("",))
    run = prepared(spec_of(tmp_path), store=LocalStore(tmp_path / "store"))
    assert "lacks" not in run.to_values()["data"]
    plan = runs.plans_of(run)[0]
    assert plan.data.incomplete == "use" and "incomplete" not in plan.model_dump(mode="json")["data"]
    other = prepared(spec_of(tmp_path, "data.incomplete=skip"), store=LocalStore(tmp_path / "other"))
    assert runs.plans_of(other)[0].model_dump(mode="json")["data"]["incomplete"] == "skip"


def test_skipped_examples_are_of_no_client_and_no_split(tmp_path: Path) -> None:
    write_holes(tmp_path / "data", count=60)
    run = prepared(spec_of(tmp_path, "data.incomplete=skip"), store=LocalStore(tmp_path / "store"))
    assert run.data.left_out == {"examples that lack a modality": 40} and run.data.lacks == {}
    assert (sum(run.data.clients.values()), run.data.num_test) == (16, 4)
    with pytest.raises(
        DataError, match=r"32 of 48 train examples lack a modality: 01 has no audio -> .*incomplete=use"
    ):
        prepared(spec_of(tmp_path, "data.incomplete=fail"), store=LocalStore(tmp_path / "fail"))


def silos(folder: Path, *overrides: str, **lacks: tuple[str, ...]) -> RunSpec:
    """Writes folders of two clients and the server; their sounds may be missing."""
    for who in ("client-000", "client-001", "server"):
        write_holes(folder / "data" / who, lacks=lacks.get(who.replace("-", "_"), ("",)))
    local = "federation={num_clients: 2, partition: {kind: local}}"
    return tiny_spec(folder / "store", *on(folder / "data" / "{client}", local, *overrides))


def test_clients_tell_what_their_own_examples_lack(tmp_path: Path) -> None:
    """The same where their folders are here, and where only they see them."""
    spec = silos(tmp_path, "evaluation.holdout_fraction=0.2", client_001=("audio", "", "image audio"))
    here = prepare(
        draft(spec, store=LocalStore(tmp_path / "here"), options=Options(run_id="r")),
        store=LocalStore(tmp_path / "here"), emit=lambda event: None,
    )  # fmt: skip
    elsewhere = there(spec, LocalStore(tmp_path / "there"))
    assert here.data.to_values() == elsewhere.data.to_values()
    assert here.data.lacks.keys() == {"client-001"} and here.data.lacks["client-001"].keys() == {"audio"}
    assert here.data.left_out == {TOO_FEW: 8}
    told = LocalStore(tmp_path / "there").read_ref(paths.client_data("r", "client-001"))
    assert told is not None and told["lacks"] == here.data.lacks["client-001"]
    silent = LocalStore(tmp_path / "there").read_ref(paths.client_data("r", "client-000"))
    assert silent is not None and "lacks" not in silent


def test_a_client_whose_examples_teach_nothing_is_refused_by_name(tmp_path: Path) -> None:
    lacks = ("audio", "image") + ("text audio",) * 28
    spec = silos(tmp_path, client_001=lacks)
    match = r"no two of the 2 training examples of client-001 have the same two modalities"
    with pytest.raises(DataError, match=match):
        prepared(spec, store=LocalStore(tmp_path / "here"))
    with pytest.raises(DataError, match=f"client-001: .*{match}"):
        there(spec, LocalStore(tmp_path / "there"))
    with pytest.raises(DataError, match=r"client-001 has 0 example\(s\) to train on|no train example"):
        prepared(silos(tmp_path / "b", client_001=("text audio",)), store=LocalStore(tmp_path / "none"))


def test_a_modality_that_no_client_has_is_refused_and_the_server_may_lack_one(tmp_path: Path) -> None:
    none = dict.fromkeys(("client_000", "client_001"), ("audio",))
    with pytest.raises(DataError, match="no client has a training example with audio -> name its column"):
        prepared(silos(tmp_path / "a", **none), store=LocalStore(tmp_path / "none"))
    spec = silos(tmp_path / "b", client_000=("audio",), server=("audio",))
    run = prepared(spec, store=LocalStore(tmp_path / "some"))
    assert run.data.lacks == {"client-000": {"audio": run.data.clients["client-000"]}}


def test_several_devices_a_client_are_refused(tmp_path: Path) -> None:
    write_holes(tmp_path / "data")
    devices = ("launch={kind: subprocess, devices: 2, device: cpu}", "federation={num_clients: 1}")
    with pytest.raises(SpecError, match=r"examples of client-000 lack a modality \(.*\).*launch\.devices=1.*skip"):
        prepared(spec_of(tmp_path, *devices), store=LocalStore(tmp_path / "store"))
    prepared(spec_of(tmp_path, *devices, "data.incomplete=skip"), store=LocalStore(tmp_path / "s"))


def warnings(spec: RunSpec, folder: Path) -> list[str]:
    events: list[Event] = []
    store = LocalStore(folder)
    prepare(draft(spec, store=store, options=Options()), store=store, emit=events.append)
    return [event.message for event in events if isinstance(event, Warning)]


def test_a_pair_that_cannot_be_judged_is_told_first(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "data")
    write_jsonl(tmp_path / "data", [{**row, "audio": None} if row["split"] == "test" else row for row in rows])
    assert warnings(spec_of(tmp_path), tmp_path / "s") == [
        "no test example has both audio and image: there will be no test/a2i and test/i2a",
        "no test example has both audio and text: there will be no test/a2t and test/t2a",
    ]
    assert warnings(spec_of(tmp_path, SUPERVISED), tmp_path / "t") == []


GATE = "stages.gate={{patience: 1, metric: validation/{}}}"


@pytest.mark.parametrize(
    ("metric", "lacks", "other"),
    [
        ("a2t/R@1", "audio", "i2t"),
        ("t2i/R@5", "text", "a2i"),
        ("loss", None, None),
        ("zero_shot/accuracy", "image", "a2t"),
    ],
)
def test_a_gate_that_no_validation_example_can_decide_is_refused(
    tmp_path: Path, metric: str, lacks: str | None, other: str | None
) -> None:
    rows = rows_of(tmp_path / "data", lacks=("",))
    chosen = [row for row in rows if row["split"] == "train"][:: 3 if lacks else 24]
    for row in chosen:
        row |= {"split": "validation", **({lacks: None} if lacks else {})}
    write_jsonl(tmp_path / "data", rows)
    name = f"\\, or name another metric, such as validation/{other}/R@1" if other else "-> add validation examples"
    match = f"`stages.gate` is decided by validation/{metric}.*the {len(chosen)} validation examples have none.*{name}"
    with pytest.raises(SpecError, match=match.replace("\\,", ",")):
        prepared(spec_of(tmp_path, GATE.format(metric)), store=LocalStore(tmp_path / "store"))
    if lacks:
        fits = GATE.format(f"{other}/R@1")
        prepared(spec_of(tmp_path, fits), store=LocalStore(tmp_path / "fits"))
    written = tmp_path / "spec.json"
    written.write_text(json.dumps(to_values(spec_of(tmp_path))))
    swept = ["sweep", str(written), "--grid", "training.batch_size=4,8", "--metric", f"validation/{metric}"]
    ended = CliRunner().invoke(app, swept)
    assert isinstance(ended.exception, SpecError) and "the sweep is decided by" in ended.exception.problem


def test_what_earlier_versions_refused_is_checked_again(tmp_path: Path) -> None:
    """They listed examples that lack a modality as unreadable, in a store that may still be in use."""
    write_holes(tmp_path / "data")
    store = LocalStore(tmp_path / "store")
    run = prepared(spec_of(tmp_path, "data.on_bad_example=skip"), store=store)
    (tmp_path / "data/02.png").write_bytes(b"no picture")
    run = prepared(spec_of(tmp_path, "data.on_bad_example=skip"), store=store, options=Options(fresh=True))
    ref = paths.checked_data(run.data.versions["server"], ("audio", "image", "text"), "train")
    (known,) = (store.read_ref(ref) or {}).values()
    assert known.keys() == {"02"}
    store.write_ref(ref, {"bad": known | {"01": "01 has no audio"}})
    again = prepared(spec_of(tmp_path, "data.on_bad_example=skip"), store=store, options=Options(fresh=True))
    assert again.data.to_values() == run.data.to_values() and store.read_ref(ref) == {"bad": known}


def test_it_is_shown_where_people_look(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "data")
    write_jsonl(tmp_path / "data", [{**row, "audio": None} if row["site"] == "south" else row for row in rows])
    done = run_tiny(tmp_path / "store", *on(tmp_path / "data", "stages.rounds=[1, 0]"))
    lines = lacks_text(done.run.data.lacks, done.run.data.clients)
    assert len(lines) == 3 and lines[0].endswith(" examples lack it, all of client-001's")
    (tmp_path / "spec.json").write_text(json.dumps(to_values(spec_of(tmp_path))))
    for command in (
        ["plan", str(tmp_path / "spec.json")],
        ["partition", str(tmp_path / "spec.json")],
        ["show", done.run.run_id, "--store", str(tmp_path / "store")],
    ):
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 0, ended.output
        assert all(line in ended.stdout for line in lines), command
    from lwfed.steps.finish import write_report

    page = Path(write_report(done.run, bench=done.bench, output=tmp_path / "report.html")).read_text()
    assert all(line.replace("'", "&#39;") in page for line in lines)


def test_counts_of_examples() -> None:
    examples = [Example("a", None), Example("b", None, lacks=("audio",)), Example("c", None, lacks=("audio", "depth"))]
    assert examples_with(examples, ("audio", "image")) == {"audio": 1}
    assert examples_with(examples[:1], ("audio", "image")) == {} == examples_with(examples, ("image",))
    model = tiny_spec("x").model
    kept, missing = usable_of([*examples, Example("d", None, lacks=("text",))], model=model, incomplete="use")
    assert [example.id for example in kept] == ["a", "b", "c"] and missing == {TOO_FEW: 1}, "it reads no sound"


def test_lines_name_the_clients_that_lack_a_modality_whole() -> None:
    sizes = {f"client-{n:03d}": 10 for n in range(5)}
    lacks = {client: {"audio": 10} for client in sizes} | {"client-004": {"audio": 3, "text": 1}}
    assert lacks_text(lacks, sizes) == [
        "audio: 43 of 50 examples lack it, all of client-000's, client-001's, client-002's and 1 more",
        "text: 1 of 50 examples lack it",
    ]
    assert lacks_text({}, sizes) == []
