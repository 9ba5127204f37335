"""Laws of hierarchical gradient blending in whole runs: weights follow from what is committed, wherever clients run."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lwfed.export.export import export_run
from lwfed.launch.subprocess import Subprocess
from lwfed.models.build import skeleton, tensor_specs
from lwfed.plan.blending import ONE
from lwfed.report.series import panels_of
from lwfed.round.evaluate_client import sample_of
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.run.tasks import Place
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError
from tests.holes import LACKS, SUPERVISED, on, write_holes
from tests.laws.test_laws_costs import Weighing
from tests.laws.test_laws_prefix import KEEP
from tests.tiny import ONE_STAGE, Finished, Stopped, run_tiny, stop_at
from tests.unit.catalog.test_additions import run_example

HEADS = ("fused", "image", "text")
PLAIN = "model.objective={kind: supervised, hidden: 12, dropout: 0}"
BLENDED = "model.objective={kind: supervised, hidden: 12, dropout: 0, blending: {}}"
MEASURED = (
    "evaluation={holdout_fraction: 0.3, federated_every: 1}",
    "stages.rounds=[4,3]",
    "data.shapes.train=32",
    "training.learning_rate=0.003",
)
RUN = Options(run_id="again")


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_tiny(tmp_path_factory.mktemp("blended"), BLENDED, *MEASURED)


def weights_in(done: Finished, stage: int, server_round: int, client: str) -> dict[str, float] | None:
    """The weights that a client read."""
    found = done.store.read_ref(paths.head_weights(done.keys[stage - 1], server_round, client))
    return None if found is None else found["weights"]


def by_formula(before: dict[str, Any], after: dict[str, Any], *, weights: dict[str, float] | None = None) -> Any:
    """G / O^2 of each head, or with weights of their sum: from pairs of the losses on fitted and held-out examples."""

    def one(old: tuple[float, float], new: tuple[float, float]) -> float:
        gained, overfitted = old[1] - new[1], (new[1] - new[0]) - (old[1] - old[0])
        return max(gained, 0) / max(abs(overfitted), 0.01) ** 2

    if weights is None:
        return {head: one(before[head], after[head]) for head in before}
    return one(*(tuple(sum(w * t[h][side] for h, w in weights.items()) for side in (0, 1)) for t in (before, after)))


def test_weights_are_the_formula_of_the_last_two_rounds_losses(blended: Finished) -> None:
    records = {(record["stage"], record["round"]): record for record in blended.reported("round")}
    weighed = 0
    for (stage, number), record in records.items():
        if number < 3:
            assert all(weights_in(blended, stage, number, client) is None for client in record["cohort"])
            assert all(record["metrics"][f"blend/{head}/weight"] == 1 for head in HEADS)
            continue
        before, after = (records[stage, number - n]["head_losses"] for n in (2, 1))
        accepted = blended.store.read_ref(paths.accepted(blended.keys[stage - 1], number))
        assert accepted is not None
        ratios = {}
        for client in record["cohort"]:
            found = weights_in(blended, stage, number, client)
            assert found is not None
            own = by_formula(before[client], after[client])
            mean = sum(own.values()) / 3
            expected = {head: 0.1 + 0.9 * own[head] / mean if mean else 1.0 for head in HEADS}
            assert found == pytest.approx(expected) and sum(found.values()) == pytest.approx(3)
            ratios[client] = by_formula(before[client], after[client], weights=found)
            weighed += found != dict.fromkeys(HEADS, 1.0)
        mean = sum(ratios.values()) / len(ratios)
        for client, update in accepted["clients"].items():
            factor = 0.1 + 0.9 * ratios[client] / mean if mean else 1.0
            assert update["factor"] == pytest.approx(ONE * factor, abs=1)
        for head in HEADS:
            values = [weights_in(blended, stage, number, client)[head] for client in record["clients"]]  # type: ignore[index]
            assert record["metrics"][f"blend/{head}/weight"] == pytest.approx(sum(values) / len(values))
    assert weighed >= 3, "else the test would show nothing"


def test_the_losses_are_those_of_the_rounds_result(blended: Finished) -> None:
    for record in blended.reported("round"):
        losses = record["head_losses"].values()  # of clients that hold out equally many examples
        for head in HEADS:
            name = "loss" if head == "fused" else f"{head}/loss"
            for side, metric in enumerate(("fitted", "federated")):
                mean = sum(one[head][side] for one in losses) / len(losses)
                assert record["metrics"][f"{metric}/{name}"] == pytest.approx(mean)
    first, last = (blended.reported("round")[n]["head_losses"] for n in (0, -1))
    assert first != last and first.keys() == last.keys() == {"client-000", "client-001"}


def test_a_sample_is_drawn_once_from_what_a_client_trains_on(blended: Finished) -> None:
    stage = blended.bench.stage(blended.keys[0])
    trained, held_out = blended.bench.share(stage, Place(), "client-000")
    sample = sample_of(trained, count=len(held_out), seed="ab")
    assert len(sample) == len(held_out) == 5 and sample == [one for one in trained if one in sample]
    assert sample_of(trained[::-1], count=5, seed="ab") == sample[::-1], "whatever the order"
    assert sample_of(trained, count=5, seed="cd") != sample
    assert sample_of(trained, count=99, seed="ab") == trained


@pytest.mark.slow
def test_in_processes_of_their_own_clients_end_in_the_same_digest(blended: Finished, tmp_path: Path) -> None:
    def launcher(store: Store) -> Subprocess:
        return Subprocess(store, parallel=2, devices=1, retries=0)

    done = run_tiny(tmp_path, BLENDED, *MEASURED, launcher=launcher)
    assert (done.digest, done.keys) == (blended.digest, blended.keys)
    losses = [[record["head_losses"] for record in run.reported("round")] for run in (done, blended)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("kind", "count"), [("round", 2), ("client_done", 5), ("aggregating", 4), ("round", 6)])
def test_stopped_anywhere_a_run_ends_in_the_same_digest(
    blended: Finished, tmp_path: Path, kind: str, count: int
) -> None:
    with pytest.raises(Stopped):
        run_tiny(tmp_path, BLENDED, *MEASURED, options=RUN, emit=stop_at(kind, count))
    done = run_tiny(tmp_path, BLENDED, *MEASURED, options=RUN)
    assert (done.digest, done.keys) == (blended.digest, blended.keys)


def test_the_ledger_prices_the_heads(blended: Finished, tmp_path: Path) -> None:
    launchers: list[Weighing] = []

    def make(store: Store) -> Weighing:
        launchers.append(Weighing(store))
        return launchers[-1]

    options = ("exchange={upload: int8, download: int8}", "levers.prefix_cache=never", *MEASURED)
    done = run_tiny(tmp_path / "blended", BLENDED, *options, launcher=make)
    plain = run_tiny(tmp_path / "plain", PLAIN, *options)
    for stage, (plan, cost, without) in enumerate(
        zip(done.plans, done.run.predicted, plain.run.predicted, strict=True), start=1
    ):
        module = skeleton(plan.model, depth=plan.depth, num_classes=done.run.num_classes)
        assert cost["present_params"] == sum(p.numel() for p in module.parameters())
        assert cost["weights_bytes"] == sum(spec.nbytes for spec in tensor_specs(module).values())
        classes = done.run.num_classes or 0
        added = 2 * (8 * 12 + 12 + 12 * classes + classes)
        assert cost["trained_params"] - without["trained_params"] == added
        for record in (record for record in done.reported("round") if record["stage"] == stage):
            for client, metrics in record["clients"].items():
                weight = launchers[0].weights[done.keys[stage - 1], record["round"], client]
                assert metrics["bytes_up"] == weight == cost["upload_bytes"]
                assert metrics["bytes_down"] == cost["snapshot_bytes" if record["round"] == 1 else "change_bytes"]
        ours, theirs = (run.summary["stages"][stage - 1]["ledger"]["measured"] for run in (done, plain))
        for name in ("forward_flops", "backward_flops"):
            assert ours[name] - theirs[name] == cost[name] - without[name]
        more = ours["activations_bytes"] - theirs["activations_bytes"]
        predicted = cost["activations_bytes"] - without["activations_bytes"]
        assert 0 <= more - predicted <= 2 * 8 * (classes + 4) * 4, "the losses themselves are not predicted"


@pytest.mark.parametrize("options", [("exchange={upload: bf16, download: int8}",), ("federation.server.kind=fedadam",)])
def test_it_goes_with_every_exchange_and_server(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run_tiny(tmp_path, BLENDED, *MEASURED, *options)
    assert all(math.isfinite(r["metrics"]["train/loss"]) for r in done.reported("round"))
    assert any(r["metrics"]["blend/image/weight"] != 1 for r in done.reported("round"))


def test_with_one_stage_all_strategies_are_one(tmp_path: Path) -> None:
    chosen = (BLENDED, *MEASURED, *ONE_STAGE, "stages.rounds=[3]")
    runs_of = (run_tiny(tmp_path / s, *chosen, f"strategy={s}") for s in ("layerwise", "end_to_end"))
    assert len({run.digest for run in runs_of}) == 1


def test_cached_prefixes_change_nothing(tmp_path: Path) -> None:
    """Held-out examples have no cached outputs: they are evaluated by the whole model."""
    kept, computed = (
        run_tiny(tmp_path / lever, BLENDED, *MEASURED, KEEP, f"levers.prefix_cache={lever}")
        for lever in ("always", "never")
    )
    assert kept.plans[1].levers.views and not computed.plans[1].levers.views
    losses = [[r["metrics"]["federated/image/loss"] for r in run.reported("round")] for run in (kept, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_without_weighing_clients_updates_weigh_as_ever(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, BLENDED, *MEASURED, "model.objective.blending.clients=false")
    accepted = done.store.read_ref(paths.accepted(done.keys[0], 4))
    assert accepted is not None and all("factor" not in update for update in accepted["clients"].values())
    assert any(r["metrics"]["blend/image/weight"] != 1 for r in done.reported("round"))


def test_a_client_that_holds_out_too_few_is_named_and_counts_as_the_mean(tmp_path: Path) -> None:
    partition = "federation={num_clients: null, partition: {kind: by_group, field: label}}"
    sizes = ("data.shapes.train=28", "evaluation.holdout_fraction=0.2")
    done = run_tiny(tmp_path, BLENDED, *MEASURED, partition, *sizes)
    records = [record for record in done.reported("round") if record["stage"] == 1]
    few = [c for c in records[0]["cohort"] if c not in records[0]["head_losses"]]
    told = [event["message"] for event in done.reported("warning") if "fewer than two" in event["message"]]
    assert few and len(few) < len(records[0]["cohort"]) and len(told) == 2, "once in each stage"
    assert all(client in told[0] for client in few)
    accepted = done.store.read_ref(paths.accepted(done.keys[0], 3))
    assert accepted is not None
    for client in few:
        assert weights_in(done, 1, 3, client) == {} and accepted["clients"][client]["factor"] == ONE


def test_a_client_blends_the_heads_of_what_its_data_have(tmp_path: Path) -> None:
    """No row of the north has a sound: it has no such head. The south's rows lack this and that."""
    write_holes(tmp_path / "data", count=60, lacks=["audio"] * 30 + [LACKS[n % len(LACKS)] for n in range(30)])
    chosen = on(tmp_path / "data", SUPERVISED, *MEASURED[:2], "model.objective.blending={}")
    done = run_tiny(tmp_path / "store", *chosen)
    assert done.plans[0].lacks == {"client-000": ("audio",)}
    for record in done.reported("round"):
        north, south = (record["head_losses"][client] for client in ("client-000", "client-001"))
        assert sorted(north) == ["fused", "image", "text"] and sorted(south) == ["audio", *sorted(north)]
        if record["round"] >= 3:
            found = [weights_in(done, record["stage"], record["round"], client) for client in record["cohort"]]
            assert [sorted(weights or ()) for weights in found] == [sorted(north), sorted(south)]
            assert [sum((weights or {}).values()) for weights in found] == pytest.approx([3, 4])
    assert run_tiny(tmp_path / "again", *chosen).digest == done.digest


def test_with_fewer_evaluations_weights_stay_for_several_rounds(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, BLENDED, *MEASURED, "evaluation.federated_every=2", "stages.rounds=[6,1]")
    found = [weights_in(done, 1, number, "client-000") for number in range(1, 7)]
    assert found[:4] == [None] * 4 and found[4] == found[5] is not None
    measured = [
        record["round"] for record in done.reported("round") if record["stage"] == 1 and record.get("head_losses")
    ]
    assert measured == [2, 4, 6]


@pytest.mark.parametrize("content", [{"weights": {"image": -1}}, {"weights": {"image": "1"}}, {"weights": 3}, {}])
def test_damaged_weights_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    def stop(name: str, values: dict[str, Any]) -> None:
        if name == "round" and values["round"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_tiny(tmp_path, BLENDED, *MEASURED, options=RUN, emit=stop)
    store = LocalStore(tmp_path)
    key = runs.read_run(store, "again").stages[0].key
    store.write_ref(paths.head_weights(key, 3, "client-000"), content)
    with pytest.raises(CheckpointError, match=r"weights\.json"):
        run_tiny(tmp_path, BLENDED, *MEASURED, options=RUN)


def test_an_export_has_the_fused_head_alone(blended: Finished, tmp_path: Path) -> None:
    export_run(blended.run.run_id, tmp_path / "export", bench=blended.bench)
    written = {path.name for path in (tmp_path / "export/heads").iterdir()}
    assert written == {"image.safetensors", "text.safetensors", "prediction.safetensors"}
    source = blended.bench.data(blended.bench.stage(blended.keys[0]), Place())
    example = source.examples("test")[0]
    source.image(example).save(tmp_path / "image.png")
    line = run_example(tmp_path / "export", tmp_path / "image.png", Path(example.captions[0]))
    assert line.split(": ")[0] in blended.run.data.classes


def test_reports_show_heads_and_their_weights(blended: Finished) -> None:
    _, rounds = runs.history(blended.store, runs.read_run(blended.store, blended.run.run_id))
    panels = {panel.key: panel for panel in panels_of(rounds)}
    assert [series.label for series in panels["blending"].series] == list(HEADS)
    labels = [(series.label, series.held_out) for series in panels["loss"].series]
    assert len(set(labels)) == len(labels), "no two curves have one name"
    assert {("test (image alone)", False), ("test (image alone)", True), ("fitted (text alone)", False)} <= set(labels)
    assert "accuracy (image alone)" in [series.label for series in panels["classification"].series]
    assert all(a <= b for a, b in pairwise(number for number, _ in panels["loss"].series[0].points))
