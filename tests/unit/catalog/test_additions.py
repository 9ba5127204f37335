"""Laws of an addition: two files, found by their name, and a run plans, prices, trains and exports what they describe.

The files lie in `additions/`, laid out as in lwfed; nothing in lwfed knows their names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lwfed.catalog import names
from lwfed.drive.trackers import uri_of
from lwfed.export.export import export_run
from lwfed.export.serve import load_predictor
from lwfed.launch.launchers import make_launcher
from lwfed.models.build import skeleton
from lwfed.models.inspect import SavedBytes
from lwfed.round.aggregate_round import aggregate_round
from lwfed.run import runs
from lwfed.run.tasks import Place
from lwfed.spec.load import build_spec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.types.errors import SpecError
from lwfed.types.tensors import unit_of
from tests.laws.test_laws_costs import first_batch, price
from tests.tiny import ONE_STAGE, VALUES, Finished, accept, begun, round_task, run_tiny, tensors_of, update_tensors
from tests.unit.cli.test_commands import call_json

ADDITIONS = Path(__file__).parent / "additions"
PATCHES = "model.encoders.image={family: patchmlp, config: {width: 20}}"
TEN = "data={source: ten, workers: 0, augment: false, brightness: 90}"
GATED = "model.objective={kind: supervised, fusion: gated, hidden: 12}"
ALONE = (
    'import runpy, sys\nsys.modules["lwfed"] = None\nsys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name="alone")\n'
)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has lwfed find the additions, as if their files lay in its own folders."""
    for folder in sorted({path.parent for path in ADDITIONS.rglob("*.py")}):
        package = import_module(".".join(["lwfed", *folder.relative_to(ADDITIONS).parts]))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for name, module in list(sys.modules.items()):
        if str(ADDITIONS) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def run_example(folder: Path, *arguments: Path) -> str:
    """Runs an export's example without lwfed; returns its last line."""
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "example.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def assert_ledger(done: Finished) -> None:
    """The ledger's parameters are the modules', its bytes what clients sent and fetched, its FLOPs a real step's."""
    for plan, key, cost in zip(done.plans, done.keys, done.run.predicted, strict=True):
        module = skeleton(plan.model, depth=plan.depth, num_classes=done.run.num_classes)
        assert cost["present_params"] == sum(p.numel() for p in module.parameters())
        trained = [module.get_submodule(unit) for unit in plan.trained]
        assert cost["trained_params"] == sum(p.numel() for unit in trained for p in unit.parameters())
        folder = Path(done.store.uri) / f"stages/{key}/rounds"
        for record in done.reported("round"):
            if record["stage"] == plan.stage:
                for client, metrics in record["clients"].items():
                    files = (folder / f"{record['round']:03d}/updates/{client}").glob("*.safetensors")
                    seen = sum(file.stat().st_size for file in files)
                    assert seen in (0, cost["upload_bytes"]) and metrics["bytes_up"] == cost["upload_bytes"]
                    assert metrics["bytes_down"] == cost["snapshot_bytes"]


def test_a_name_is_known_as_soon_as_its_file_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "patchmlp" in names("encoders") and "gated" in names("fusions")
    build_spec(VALUES, overrides=[PATCHES, GATED, TEN])
    with pytest.raises(SpecError, match=r"data\.brightness.*less than or equal to 255"):
        build_spec(VALUES, overrides=[TEN, "data.brightness=300"])
    with pytest.raises(SpecError, match=r"a patchmlp has no `config\.depht`"):
        build_spec(VALUES, overrides=[PATCHES, "model.encoders.image.config={depht: 3}"])
    definitions = RunSpec.model_json_schema()["$defs"]
    assert "ten" in definitions["DataSpec"]["properties"]["source"]["enum"]
    assert definitions["DataSpec"]["properties"]["brightness"]["maximum"] == 255
    assert "patchmlp" in definitions["EncoderSpec"]["properties"]["family"]["enum"]
    monkeypatch.undo()
    with pytest.raises(SpecError, match=r"data\.source|unknown key `data\.brightness`"):
        build_spec(VALUES, overrides=[TEN])


def test_an_encoder_is_planned_counted_trained_and_exported(tmp_path: Path) -> None:
    done = run_tiny(tmp_path / "store", PATCHES)
    assert [plan.cut["image"] for plan in done.plans] == [0, 1]
    assert "image.norm" not in done.plans[1].present and "image.blocks.1" in done.plans[1].trained
    assert done.plans[0].levers.last_block == {"image": "full", "text": "absorbed"}
    assert_ledger(done)
    for stage in (1, 2):
        first = next(record for record in done.reported("round") if record["stage"] == stage)
        metrics = first["clients"]["client-000"]
        size, length = first_batch(done, stage, "client-000").inputs["text"]["ids"].shape
        cost, step = price(done, stage, tokens=length), metrics["step_flops"]
        loss = 2 * (2 * size * size * 8)
        assert step["forward"] == pytest.approx(size * cost.forward_flops + loss, rel=0.02)
        assert step["backward"] == pytest.approx(size * cost.backward_flops + 2 * loss, rel=0.02)
        assert metrics["peak_tensor_bytes"] == pytest.approx(cost.peak_bytes, rel=0.10)
    export_run(done.run.run_id, tmp_path / "export", bench=done.bench, with_test_data=True)
    line = run_example(tmp_path / "export")
    assert float(line.split(": ")[1]) == pytest.approx(done.summary["metrics"]["test/t2i/R@1"], abs=1e-6)
    assert "MLPs over patches" in (tmp_path / "export/README.md").read_text()


def test_an_encoder_starts_from_its_own_export(tmp_path: Path) -> None:
    done = run_tiny(tmp_path / "store", PATCHES, "stages.rounds=[1, 0]")
    export_run(done.run.run_id, tmp_path / "export", bench=done.bench)
    weights = f"model.encoders.image.weights={tmp_path / 'export/image'}"
    again = run_tiny(tmp_path / "again", PATCHES, weights, "stages.rounds=[1, 0]")
    start, end = (
        {name: tensor for name, tensor in tensors_of(run.store, found).items() if name.startswith("image.stem")}
        for run, found in ((again, again.checkpoint(1, 0)), (done, done.checkpoint(2)))
    )
    assert start.keys() == end.keys() and all(torch.equal(start[name], end[name]) for name in start)


def test_the_command_line_plans_an_encoder_without_formulas(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps({**VALUES, "store": {"uri": str(tmp_path)}}))
    planned = call_json("plan", str(path), "-o", PATCHES, "-o", TEN)
    model = build_spec(VALUES, overrides=[PATCHES]).model
    module = skeleton(model, depth={"image": 2, "text": 2}, num_classes=None)
    assert planned["end_to_end"]["present_params"] == sum(p.numel() for p in module.parameters())


def test_a_source_is_read_and_its_settings_are_part_of_the_plan(tmp_path: Path) -> None:
    done = run_tiny(tmp_path / "a", TEN)
    assert done.run.data.clients == {"client-000": 4, "client-001": 4}
    assert (done.run.data.num_test, done.run.data.classes) == (2, ["left", "right"])
    data = done.plans[0].data
    assert data.model_dump(mode="json")["brightness"] == 90
    assert data.at(root=None, workers=0) == runs.spec_of(done.run).data
    kept = run_tiny(tmp_path / "b", TEN, "levers.prefix_cache=always")
    assert kept.plans[1].levers.views["text"] == 2, "both captions"
    darker = run_tiny(tmp_path / "a", TEN, "data.brightness=80")
    assert not set(darker.keys) & set(done.keys), "they are other data"
    with pytest.raises(SpecError, match="the ten data have no audio"):
        build_spec(VALUES, overrides=[TEN, "model.encoders.audio={family: ast}"])


@pytest.mark.parametrize("strategy", ["layerwise", "progressive", "end_to_end"])
def test_a_fusion_with_parameters_is_a_unit_like_any_other(tmp_path: Path, strategy: str) -> None:
    done = run_tiny(tmp_path / "store", GATED, f"strategy={strategy}")
    assert all("fusion" in plan.trained and "prediction" in plan.rates for plan in done.plans)
    assert_ledger(done)
    for stage, cost in enumerate(done.run.predicted, start=1):
        gate = 2 * (2 * 8) + 2
        assert cost["parts"]["fusion"]["params"] == cost["parts"]["fusion"]["exchanged_params"] == gate
        found = tensors_of(done.store, done.checkpoint(stage))
        before = tensors_of(done.store, done.checkpoint(stage, 0))
        mine = {name for name in found if unit_of(name) == "fusion"}
        assert mine == {"fusion.gate.weight", "fusion.gate.bias"}
        assert not any(torch.equal(found[name], before[name]) for name in mine), "every stage trains it"


def test_a_fusion_s_memory_and_flops_are_the_ledgers(tmp_path: Path) -> None:
    fusion = import_module("lwfed.models.fusions.gated").build(("image", "text"), width=8)
    cost = import_module("lwfed.catalog.fusions.gated").unit(("image", "text"), 8).cost
    parts = {name: torch.ones(6, 8, requires_grad=True) for name in ("image", "text")}
    saved = SavedBytes(list(fusion.parameters()))
    with saved.watch():
        fusion(parts)
    assert saved.total == 6 * cost.saved_bytes(0)
    gated, plain = (
        run_tiny(tmp_path / name, f"model.objective={{kind: supervised, fusion: {name}, hidden: 12}}", *ONE_STAGE)
        for name in ("gated", "concat")
    )
    steps = [done.reported("round")[0]["clients"]["client-000"]["step_flops"] for done in (gated, plain)]
    wider = 2 * 8 * 12 - 8 * 12  # the prediction head of `concat` takes two projections, that of `gated` one
    assert steps[0]["batch"] == steps[1]["batch"]
    for way, factor in (("forward", 2), ("backward", 4)):
        difference = steps[0][way] - steps[1][way]
        assert difference == steps[0]["batch"] * (getattr(cost, way).at(0) - factor * wider)
    assert "fusion" not in {unit for plan in plain.plans for unit in plan.present}


def test_one_client_s_fusion_is_the_aggregate(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, GATED, "federation.num_clients=1")
    accept(bench, stage, ["client-000"])
    aggregate_round(round_task(bench, stage), bench=bench)
    found = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 1))
    assert found is not None
    result, sent = tensors_of(bench.store, found), update_tensors(bench, stage, "client-000")
    fusion = [name for name in sent if unit_of(name) == "fusion"]
    assert len(fusion) == 2 and all(torch.equal(result[name], sent[name]) for name in fusion)


def test_with_one_stage_all_strategies_train_a_fusion_equally(tmp_path: Path) -> None:
    digests = {run_tiny(tmp_path / s, *ONE_STAGE, GATED, f"strategy={s}").digest for s in ("layerwise", "end_to_end")}
    assert len(digests) == 1


def test_a_fusion_is_served_and_exported(tmp_path: Path) -> None:
    done = run_tiny(tmp_path / "store", GATED)
    export_run(done.run.run_id, tmp_path / "export", bench=done.bench)
    tensors = tensors_of(done.store, done.checkpoint(2))
    written = load_file(tmp_path / "export/heads/fusion.safetensors")
    assert written.keys() == {"gate.weight", "gate.bias"}
    assert all(torch.equal(tensor, tensors[f"fusion.{name}"]) for name, tensor in written.items())
    source = done.bench.data(done.bench.stage(done.keys[1]), Place())
    example = source.examples("test")[0]
    picture = tmp_path / "image.png"
    source.image(example).save(picture)
    line = run_example(tmp_path / "export", picture, Path(example.captions[0]))
    predictor = load_predictor(uri_of(done.store.uri, done.keys[1]), done.digest)
    best, shares = predictor.classify(images=[source.image(example)], texts=[example.captions[0]])
    assert line.split(": ")[0] == best[0]
    assert float(line.split(": ")[1]) == pytest.approx(float(shares.max()), abs=1e-5)


def test_a_launcher_is_opened_by_its_name(tmp_path: Path) -> None:
    spec = build_spec({**VALUES, "store": {"uri": str(tmp_path)}}, overrides=["launch.kind=backwards"])
    launcher: Any = make_launcher(spec, store=LocalStore(tmp_path), run_id="r")
    assert type(launcher).__name__ == "Backwards" and not launcher.remote
    forwards = run_tiny(tmp_path / "a")
    assert run_tiny(tmp_path / "b", launcher=type(launcher)).digest == forwards.digest
