"""Laws of inertial signals: what is predicted is measured, what is frozen stays, and what is exported works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lwfed.drive.trackers import uri_of
from lwfed.export.export import export_run
from lwfed.export.serve import Predictor, load_predictor
from lwfed.launch.subprocess import Subprocess
from lwfed.models.build import skeleton
from lwfed.run import runs
from lwfed.run.tasks import Place
from lwfed.types.errors import DataError, SpecError
from lwfed.types.tensors import unit_of
from tests import inertial
from tests.laws.test_laws_costs import first_batch
from tests.laws.test_laws_prefix import prefix_metrics
from tests.tiny import Finished, measured_of, run_tiny, tensor_digests, tensors_of

SENSORS = ("accelerometer", "gyroscope")
CONTRASTIVE = "model.objective={kind: contrastive}"
GRU = tuple(f"model.encoders.{sensor}.config.blocks=gru" for sensor in SENSORS)
ONE = ("stages.rounds=[2]", *(f"model.encoders.{sensor}.blocks_per_stage=2" for sensor in SENSORS))
STRATEGIES = ("layerwise", "progressive", "end_to_end")
ALONE = (
    'import runpy, sys\nsys.modules["lwfed"] = None\nsys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name="alone")\n'
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inertial.write_har(tmp_path_factory.mktemp("har"), arrays=True)


@pytest.fixture(scope="module")
def supervised(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("store"), *inertial.overrides(root))


def run(store: Path, root: Path, *more: str) -> Finished:
    return run_tiny(store, *inertial.overrides(root, *more))


@pytest.mark.parametrize(
    ("strategy", "objective", "blocks"),
    [
        *((strategy, "supervised", "transformer") for strategy in STRATEGIES),
        ("layerwise", "contrastive", "transformer"), ("layerwise", "supervised", "gru"),
        ("end_to_end", "supervised", "gru"),
    ],
)  # fmt: skip
def test_what_is_predicted_is_measured(strategy: str, objective: str, blocks: str, root: Path, tmp_path: Path) -> None:
    changes = (CONTRASTIVE,) if objective == "contrastive" else ()
    done = run(tmp_path, root, *changes, *(GRU if blocks == "gru" else ()), f"strategy={strategy}")
    assert done.run.data.clients == {"client-000": 6, "client-001": 6, "client-002": 6}
    for stage, (plan, cost) in enumerate(zip(done.plans, done.run.predicted, strict=True), start=1):
        module = skeleton(plan.model, depth=plan.depth, num_classes=done.run.num_classes)
        assert cost["present_params"] == sum(p.numel() for p in module.parameters())
        trained = [module.get_submodule(unit) for unit in plan.trained]
        assert cost["trained_params"] == sum(p.numel() for unit in trained for p in unit.parameters())
        measured = done.summary["stages"][stage - 1]["ledger"]["measured"]
        assert measured["bytes_up"] == cost["upload_bytes"] and measured["bytes_down"] == cost["download_bytes"]
        assert measured["bytes_down_frozen"] == cost["newly_frozen_bytes"] / plan.rounds
        record = next(record for record in done.reported("round") if record["stage"] == stage)
        for client, metrics in measured_of(record).items():
            batch = first_batch(done, stage, client)
            size = len(batch.ids)
            assert batch.inputs["gyroscope"].shape == (size, inertial.LENGTH, 3)
            loss = 2 * (2 * size * size * plan.model.projection.out) if objective == "contrastive" else 0
            step = metrics["step_flops"]
            assert step["forward"] == size * cost["forward_flops"] + loss
            assert step["backward"] == size * cost["backward_flops"] + 2 * loss
            assert metrics["peak_tensor_bytes"] == pytest.approx(cost["peak_bytes"], rel=0.10)


def test_each_window_is_an_item_although_all_lie_in_the_same_files(root: Path, tmp_path: Path) -> None:
    done = run(tmp_path, root, CONTRASTIVE, "stages.rounds=[1,0]")
    metrics = done.summary["metrics"]
    assert metrics["test/acc2gyr/R@1"] < 0.5 and metrics["test/gyr2acc/R@1"] < 0.5, "after one round it guesses"


def test_it_learns_what_tells_the_classes_apart(root: Path, tmp_path: Path) -> None:
    done = run(tmp_path, root, *ONE, "stages.rounds=[12]", "training.learning_rate=3.0e-3", "training.local_epochs=4")
    assert done.summary["metrics"]["test/accuracy"] == 1.0


@pytest.mark.parametrize("blocks", ["transformer", "gru"])
def test_recomputed_blocks_change_nothing(blocks: str, root: Path, tmp_path: Path) -> None:
    chosen = GRU if blocks == "gru" else ()
    plain = run(tmp_path / "a", root, *chosen)
    again = run(tmp_path / "b", root, *chosen, "training.activation_checkpointing=true")
    assert plain.digest == again.digest
    peaks = [done.run.predicted[0]["activations_bytes"] for done in (plain, again)]
    assert peaks[1] < peaks[0]


def test_names_outside_trained_do_not_change(supervised: Finished) -> None:
    before, after = (tensor_digests(supervised.checkpoint(stage)) for stage in (1, 2))
    frozen = set(supervised.plans[1].frozen)
    assert frozen == {f"{sensor}.{unit}" for sensor in SENSORS for unit in ("stem", "blocks.0")}
    same = {unit_of(name) for name in before if before[name] == after[name]}
    assert frozen <= same and not any(unit_of(name) in frozen and before[name] != after[name] for name in before)


def test_with_one_stage_all_strategies_are_one(root: Path, tmp_path: Path) -> None:
    digests = {run(tmp_path / s, root, *ONE, f"strategy={s}").digest for s in STRATEGIES}
    assert len(digests) == 1


def test_cached_outputs_are_those_of_the_frozen_blocks(root: Path, tmp_path: Path) -> None:
    kept = run(tmp_path, root, "levers.prefix_cache=always")
    assert prefix_metrics(kept, 2)[-1]["prefix"] == dict.fromkeys(SENSORS, "kept")
    computed = run(tmp_path / "computed", root, "levers.prefix_cache=never")
    losses = [[r["metrics"]["train/loss"] for r in done.reported("round")] for done in (kept, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_text_and_arrays_end_in_one_digest(supervised: Finished, tmp_path: Path) -> None:
    told = run(tmp_path / "store", inertial.write_har(tmp_path / "har"))
    assert told.digest == supervised.digest, "the text has every digit"


@pytest.mark.slow
def test_processes_of_their_own_end_in_the_same_digest(supervised: Finished, root: Path, tmp_path: Path) -> None:
    there = run_tiny(
        tmp_path, *inertial.overrides(root), launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0)
    )
    assert there.digest == supervised.digest


def test_subjects_set_apart_validate(root: Path, tmp_path: Path) -> None:
    done = run(tmp_path, root, "data.validation_subjects=1")
    assert done.run.data.num_validation == 6 and len(done.run.data.clients) == 2
    assert "validation/accuracy" in done.summary["metrics"]
    assert done.plans[0].data.model_dump(mode="json")["validation_subjects"] == 1


def test_windows_of_another_shape_are_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gyroscope of test/1 has the shape \[32, 3\].*64 samples of 3 axes"):
        run(tmp_path, root, "model.encoders.gyroscope.config.length=64")
    assert not list(tmp_path.glob("runs/*"))
    with pytest.raises(SpecError, match="the har data have no image"):
        run(tmp_path, root, "model.encoders.image={family: vit, arch: vit_tiny_patch16_224}")


def test_a_client_s_own_windows_of_another_shape_are_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    for who in ("server", "client-000", "client-001"):
        shutil.copytree(root, tmp_path / "data" / who)
    file = next((tmp_path / "data" / "client-001" / "train").rglob("body_gyro*.npy"))
    np.save(file, np.load(file)[:, :-1])
    own = f"data={{source: har, root: '{tmp_path}/data/{{client}}', workers: 0}}"
    with pytest.raises(DataError, match=r"gyroscope of train/1 has the shape \[31, 3\]"):
        run(tmp_path / "store", root, own, "federation={num_clients: 2, partition: {kind: local}}")
    assert not list((tmp_path / "store").glob("runs/*"))


def predictor(done: Finished) -> Predictor:
    return load_predictor(uri_of(done.store.uri, done.keys[-1]), done.digest)


def recorded(done: Finished) -> tuple[list[int], dict[str, list[np.ndarray]]]:
    """Returns the test data's labels, and its signals by sensor."""
    place = Place(root=runs.spec_of(done.run).data.root)
    source = done.bench.data(done.bench.stage(done.keys[0]), place)
    examples = source.examples("test")
    signals = {sensor: [source.series(example, sensor) for example in examples] for sensor in SENSORS}
    return [example.label or 0 for example in examples], signals


def test_it_is_served_as_it_was_evaluated(supervised: Finished, root: Path, tmp_path: Path) -> None:
    labels, signals = recorded(supervised)
    served = predictor(supervised)
    names, shares = served.classify(**signals)
    right = [served.classes.index(name) == label for name, label in zip(names, labels, strict=True)]
    assert np.mean(right) == pytest.approx(supervised.summary["metrics"]["test/accuracy"])
    assert shares.shape == (6, 2) and served.modalities == SENSORS
    with pytest.raises(DataError, match="the counts of examples differ"):
        served.classify(accelerometer=signals["accelerometer"])
    with pytest.raises(DataError, match=r"gyroscope 1 has the shape \[31, 3\]"):
        served.embed_series("gyroscope", [signals["gyroscope"][0], signals["gyroscope"][1][1:]])
    with pytest.raises(DataError, match="gyroscope 0 has a value that is not a finite number"):
        served.embed_series("gyroscope", [np.full((inertial.LENGTH, 3), np.nan)])
    embeds = predictor(run(tmp_path, root, CONTRASTIVE))
    rows = embeds.embed_series("accelerometer", signals["accelerometer"])
    assert rows.shape == (6, 8) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    with pytest.raises(SpecError, match="no image encoder"):
        embeds.embed_images([])


@pytest.mark.parametrize("blocks", ["transformer", "gru"])
def test_an_export_works_without_lwfed(blocks: str, root: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "store", root, *(GRU if blocks == "gru" else ()))
    export_run(done.run.run_id, tmp_path / "export", bench=done.bench)
    info = json.loads((tmp_path / "export/lwfed.json").read_text())
    assert info["preprocessing"]["gyroscope"]["length"] == inertial.LENGTH
    _, signals = recorded(done)
    paths = []
    for sensor in SENSORS:
        paths.append(tmp_path / f"{sensor}.npy")
        np.save(paths[-1], signals[sensor][3])
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "export/example.py"), *map(str, paths)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    name, share = ended.stdout.strip().splitlines()[-1].split(": ")
    names, shares = predictor(done).classify(**{sensor: signals[sensor][3:4] for sensor in SENSORS})
    assert name == names[0] and float(share) == pytest.approx(float(shares.max()), abs=1e-5)


def test_training_goes_on_from_an_export(supervised: Finished, root: Path, tmp_path: Path) -> None:
    export_run(supervised.run.run_id, tmp_path / "export", bench=supervised.bench)
    weights = [f"model.encoders.{sensor}.weights={tmp_path / 'export' / sensor}" for sensor in SENSORS]
    again = run(tmp_path / "again", root, *weights, "stages.rounds=[1, 1]")
    start = tensors_of(again.store, again.checkpoint(1, 0))
    for sensor in SENSORS:
        written = load_file(tmp_path / "export" / sensor / "model.safetensors")
        mine = {name.removeprefix(f"{sensor}."): tensor for name, tensor in start.items() if name.startswith(sensor)}
        shared = written.keys() & mine.keys()
        assert {"stem.positions", "norm.weight", "blocks.0.attn.qkv.weight"} <= shared
        assert all(torch.equal(written[name], mine[name]) for name in shared)


@pytest.mark.slow
def test_mlflow_s_model_reads_files_base64_and_json(
    supervised: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    import mlflow
    import pandas as pd

    monkeypatch.setattr(mlflow.models, "set_model", lambda model: None)
    from lwfed.tracking.mlflow import model_script

    model: Any = model_script.LwfedModel()
    model.predictor = predictor(supervised)
    _, signals = recorded(supervised)
    np.save(tmp_path / "window.npy", signals["gyroscope"][0])
    encoded = base64.b64encode((tmp_path / "window.npy").read_bytes()).decode()
    told = json.dumps(signals["accelerometer"][0].tolist())
    rows = pd.DataFrame({"accelerometer": [told, told], "gyroscope": [str(tmp_path / "window.npy"), encoded]})
    found = model.predict(None, rows)
    names, shares = model.predictor.classify(**{sensor: signals[sensor][:1] for sensor in SENSORS})
    assert list(found["label"]) == names * 2
    assert np.allclose(np.array(found["probabilities"].tolist()), shares.repeat(2, axis=0), atol=1e-6)
