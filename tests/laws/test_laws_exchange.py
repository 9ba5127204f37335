"""Laws of the exchange: what is rounded off is kept, all end in the same model, and only what was accepted counts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lwfed.federated.codecs import decode
from lwfed.federated.exchange import add_changes, publish, upload
from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.models.build import tensor_specs
from lwfed.round.aggregate_round import ROUNDED
from lwfed.round.context import RoundContext
from lwfed.round.residuals import open_residuals
from lwfed.round.round import last_accepted
from lwfed.round.train_client import fetch_model, train_client
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.runs import Options
from lwfed.run.tasks import PoolTask, RoundTask
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.store.protocol import Store
from lwfed.types.encoded import Codec, is_encoded
from lwfed.types.seeds import derive
from lwfed.types.tensors import TensorSpec
from tests.laws.test_laws_aggregation import commit, reaccept
from tests.laws.test_laws_resume import stop_at
from tests.tiny import Finished, Stopped, accept, begun, client_task, run_tiny, tensors_of, update_tensors

CODECS: tuple[Codec, ...] = ("bf16", "int8")
INT8 = ("exchange.upload=int8", "exchange.download=int8")
THREE = ("federation.num_clients=3", "federation.min_fit_clients=2")
RUN = Options(run_id="again")
FIRST, LATE = "client-000", "client-002"
SPECS = {"w": TensorSpec((3, 40)), "b": TensorSpec((40,)), "mean": TensorSpec((40,), buffer=True)}


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny experiment in int8 both ways, all rounds kept."""
    return run_tiny(tmp_path_factory.mktemp("int8"), *INT8, "stages.rounds=[3,2]", "store.keep_rounds=0")


# ---- what is rounded off is kept


def values(seed: int, *, grid: bool) -> dict[str, Tensor]:
    """Tensors of SPECS; on a grid, multiples of 2^-10 below 120 with one 127 a row, so that every int8 step is 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(spec.shape, generator=generator) for name, spec in SPECS.items()}
    if grid:
        tensors = {name: ((tensor * 20).clamp(-120, 120) * 1024).round() / 1024 for name, tensor in tensors.items()}
        tensors["w"][:, 0] = 127.0
        tensors["b"][0] = 127.0
    return tensors


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("grid", [True, False], ids=["grid", "any"])
def test_what_was_sent_and_what_is_kept_is_what_was_meant(codec: Codec, grid: bool) -> None:
    """Exact over ten rounds if fp32 can represent every difference, as on a grid.

    Otherwise exact to half an ulp of a step per round. Differences from what bf16 sends always fit into fp32.
    """
    kept: dict[str, Tensor] = {}
    sent_sum: dict[str, Any] = {"w": 0.0, "b": 0.0}
    meant_sum: dict[str, Any] = {"w": 0.0, "b": 0.0}
    step = 0.0
    zero = {name: torch.zeros(spec.shape) for name, spec in SPECS.items()}
    for number in range(10):
        trained = values(number, grid=grid)
        before = kept
        sent, kept = upload(trained, start=zero, residual=kept, specs=SPECS, codec=codec, seed=derive("ab", number))
        assert torch.equal(sent["mean"], trained["mean"]) and set(kept) == {"w", "b"}, "buffers travel as values"
        for name in ("w", "b"):
            decoded = decode(name, sent)
            meant = trained[name] + before[name] if name in before else trained[name]
            assert torch.equal(kept[name], meant - decoded)
            if codec == "bf16" or grid:
                assert torch.equal(kept[name].double() + decoded.double(), meant.double())
            step = max(step, float(meant.abs().max()) / 64)
            sent_sum[name] = sent_sum[name] + decoded.double()
            meant_sum[name] = meant_sum[name] + trained[name].double()
    for name in ("w", "b"):
        gap = (sent_sum[name] + kept[name].double() - meant_sum[name]).abs()
        assert float(gap.max()) == 0.0 if grid else float(gap.max()) <= 10 * 2 * 2.0**-24 * 64 * step
        assert float(kept[name].abs().max()) > 0


@pytest.mark.parametrize("codec", CODECS)
def test_on_average_a_real_update_arrives_as_it_is(tmp_path: Path, codec: Codec) -> None:
    """A round's change of the tiny model, sent with 300 seeds: the mean is within 5.5 of its standard errors."""
    bench, stage, _ = begun(tmp_path)
    train_client(client_task(bench, stage, FIRST), bench=bench)
    start = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert start is not None
    before, after = tensors_of(bench.store, start), update_tensors(bench, stage, FIRST)
    specs = tensor_specs(bench.skeleton(stage.key))
    name = "image.blocks.0.attn.qkv.weight"
    trials, total, step = 300, torch.zeros(specs[name].shape).double(), 0.0
    for number in range(trials):
        sent, left = upload(
            {name: after[name]}, start=before, residual={}, specs=specs, codec=codec, seed=derive(1, number)
        )
        total += decode(name, sent)
        step = max(step, 2 * float(left[name].abs().max()))
    error = (total / trials - (after[name] - before[name]).double()).abs()
    assert float(error.max()) <= 5.5 * step / 2 / math.sqrt(trials)


@pytest.mark.parametrize("codec", CODECS)
def test_the_servers_changes_and_what_it_keeps_are_what_aggregation_made(codec: Codec) -> None:
    """On a grid, exactly: the global model and what is rounded off are the start and all changes meant."""
    start = torch.zeros(3, 40)
    model, kept, meant = start, None, start.double()
    for number in range(10):
        change = values(number, grid=True)["w"]
        before = model
        published = publish(
            "w",
            before + change,
            start={"w": before}.__getitem__,
            residual=kept,
            spec=SPECS["w"],
            codec=codec,
            seed=derive(3, number),
        )
        parts, model, kept = published.sent, published.value, published.left
        assert kept is not None
        meant = meant + change.double()
        again = add_changes({"w": before}, parts, specs={"w": SPECS["w"]}, codec=codec)["w"]
        assert torch.equal(again, model), "who adds the change has the model"
        assert torch.equal(model.double() + kept.double(), meant)
        assert not torch.equal(model.double(), meant)


# ---- a round


@pytest.mark.parametrize("codec", CODECS)
def test_a_client_sends_what_it_trained_within_a_step_and_keeps_the_rest(tmp_path: Path, codec: Codec) -> None:
    """The same training with fp32 exchange says what it trained: the first round is the same."""
    plain, plain_stage, _ = begun(tmp_path / "fp32")
    train_client(client_task(plain, plain_stage, FIRST), bench=plain)
    trained = update_tensors(plain, plain_stage, FIRST)
    bench, stage, _ = begun(tmp_path / codec, f"exchange.upload={codec}")
    start = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert start is not None
    before = tensors_of(bench.store, start)
    cache = tmp_path / "cache"
    update = train_client(client_task(bench, stage, FIRST, cache=str(cache)), bench=bench)
    assert (update["metrics"]["residual"], update["metrics"]["residual_kept"]) == ("fresh", True)
    sent = update_tensors(bench, stage, FIRST)
    (folder,) = (cache / FIRST / "residuals" / stage.key).iterdir()
    assert folder.name == "001" and (folder / f"{update['digest']}.json").is_file()
    bench.store.write_ref(
        paths.round_task(stage.key, 2), {"counted": {FIRST: {"round": 1, "digest": update["digest"]}}}
    )
    kept = open_residuals(bench.client(client_task(bench, stage, FIRST, server_round=2, cache=str(cache))))
    left = {name: tensor for unit in stage.plan.trained for name, tensor in (kept.read(unit) or {}).items()}
    specs = tensor_specs(bench.skeleton(stage.key))
    for name, spec in specs.items():
        if not is_encoded(spec, codec):
            assert torch.equal(sent[name], trained[name]), name
            continue
        meant, decoded = trained[name] - before[name], decode(name, sent)
        step = sent[f"{name}:scale"].max() if codec == "int8" else meant.abs().max() / 128
        assert float((decoded - meant).abs().max()) <= float(step) * (1 + 1e-6)
        assert torch.equal(left[name], meant - decoded)
    assert set(left) == {name for name, spec in specs.items() if is_encoded(spec, codec)}


@pytest.mark.parametrize("server", ["{kind: fedavg}", "{kind: fedadam, eta: 0.01}"])
def test_a_round_depends_neither_on_the_order_of_clients_nor_on_a_common_factor(tmp_path: Path, server: str) -> None:
    uneven = "federation.partition={kind: dirichlet, alpha: 0.6, min_size: 3}"
    bench, stage, _ = begun(tmp_path, *INT8, *THREE, uneven, "evaluation.every=99", f"federation.server={server}")
    clients = (LATE, "client-001", FIRST)
    updates = accept(bench, stage, clients)
    assert len({update["num_examples"] for update in updates.values()}) > 1
    digest = commit(bench, stage).digest
    assert reaccept(bench, stage, (FIRST, LATE, "client-001"), factor=5).digest == digest
    changed = bench.store.read_ref(paths.accepted(stage.key, 1))
    assert changed is not None
    changed["clients"][FIRST]["num_examples"] += 2**20
    bench.store.delete(paths.round_checkpoint(stage.key, 1))
    bench.store.write_ref(paths.accepted(stage.key, 1), changed)
    assert commit(bench, stage).digest != digest, "the weights do count"


def test_a_round_is_the_start_and_the_weighted_mean_of_the_changes(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "exchange.upload=int8", "evaluation.every=99")
    clients = (FIRST, "client-001")
    accept(bench, stage, clients)
    start = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert start is not None
    before, result = tensors_of(bench.store, start), tensors_of(bench.store, commit(bench, stage))
    sent = [update_tensors(bench, stage, client) for client in clients]
    for name, spec in tensor_specs(bench.skeleton(stage.key)).items():
        if not is_encoded(spec, "int8"):
            continue
        mean = sum(decode(name, parts).double() for parts in sent) / 2
        assert torch.equal(result[name], (before[name].double() + mean).float()), name


def test_the_global_model_is_the_one_before_and_what_was_published(int8: Finished) -> None:
    """Bit for bit, in every round of both stages; what was rounded off is the server's state, afresh each stage."""
    for stage, rounds in ((1, 3), (2, 2)):
        plan = int8.plans[stage - 1]
        specs = tensor_specs(Workbench(int8.store).skeleton(int8.keys[stage - 1]))
        assert not int8.checkpoint(stage, 0).server and not int8.checkpoint(stage, 0).change
        for server_round in range(1, rounds + 1):
            before, after = int8.checkpoint(stage, server_round - 1), int8.checkpoint(stage, server_round)
            assert set(after.change) == set(after.server) == set(plan.trained)
            old, new = tensors_of(int8.store, before), tensors_of(int8.store, after)
            for block in after.change.values():
                sent = read_block(int8.store, block_key(block), block)
                names = [name for name in sent if name in new]
                made = add_changes(old, sent, specs={n: specs[n] for n in names}, codec="int8")
                assert made and all(torch.equal(made[name], new[name]) for name in names)
            parameters = {n for n in new if is_encoded(specs[n], "int8") and any(n.startswith(u) for u in plan.trained)}
            slots = {name for block in after.server.values() for name in block.tensors}
            assert slots == {f"{name}:{ROUNDED}" for name in parameters}
    assert not int8.checkpoint(1).change, "a stage's result is a model, however it was sent"


def round_of(bench: Workbench, key: str, server_round: int) -> RoundContext:
    return bench.round(RoundTask(store=bench.store.uri, stage_key=key, server_round=server_round))


# ---- one model, however a client came to it


def test_a_client_that_was_absent_ends_in_the_model_that_the_others_have(int8: Finished, tmp_path: Path) -> None:
    """Round 3 of stage 1: by changes from round 1 on, as a snapshot, and after a round missed."""
    key, cost = int8.keys[0], int8.run.predicted[0]
    bench = Workbench(int8.store)
    stage = bench.stage(key)

    def fetched(folder: str | None, *rounds: int) -> tuple[dict[str, Tensor], list[int]]:
        tensors, read = dict[str, Tensor](), []
        for server_round in rounds:
            place = {} if folder is None else {"cache": str(tmp_path / folder)}
            task = client_task(bench, stage, FIRST, server_round=server_round, **place)
            ctx = bench.client(task)
            model = fetch_model(ctx, ctx.start())
            tensors = model.tensors
            assert model.traffic["bytes_down"] == ctx.counted.bytes_read
            read.append(ctx.counted.bytes_read)
        return tensors, read

    snapshot, change = cost["snapshot_bytes"], cost["change_bytes"]
    assert change < 0.5 * snapshot
    whole, read = fetched(None, 3)
    assert read == [snapshot]
    steady, read = fetched("steady", 1, 2, 3)
    assert read == [snapshot, change, change]
    absent, read = fetched("absent", 1, 3)
    assert read == [snapshot, snapshot]
    again, read = fetched("steady", 3)
    assert read == [0], "it has that model"
    for tensors in (steady, absent, again):
        assert tensors.keys() == whole.keys()
        assert all(torch.equal(tensors[name], whole[name]) for name in whole)
    damaged = next((tmp_path / "absent" / FIRST / "model-0").iterdir())
    size = damaged.stat().st_size
    damaged.unlink()  # it may be another name of the store's own
    damaged.write_bytes(b"x" * size)
    fixed, _ = fetched("absent", 3)
    assert all(torch.equal(fixed[name], whole[name]) for name in whole)


def test_cohorts_that_change_cost_what_the_ledger_says(tmp_path: Path) -> None:
    """With half of four clients a round, some were there the round before and some were not."""
    done = run_tiny(
        tmp_path, *INT8, "federation.num_clients=4", "federation.fraction_fit=0.5", "stages.rounds=[6,0]",
        "training.local_steps=1", "evaluation.every=99",
    )  # fmt: skip
    cost, measured = done.run.predicted[0], done.summary["stages"][0]["ledger"]["measured"]
    fetched = [m["bytes_down"] for record in done.reported("round") for m in record["clients"].values()]
    assert set(fetched) == {cost["snapshot_bytes"], cost["change_bytes"]} and fetched.count(cost["change_bytes"]) > 1
    assert measured["bytes_down"] == pytest.approx(cost["download_bytes"], rel=1e-12)
    assert measured["bytes_up"] == cost["upload_bytes"]


@pytest.mark.slow
def test_in_process_and_subprocess_end_in_one_digest(tmp_path: Path) -> None:
    options = (*INT8, "stages.rounds=[2,1]")
    here = run_tiny(tmp_path / "here", *options)
    outside = run_tiny(
        tmp_path / "outside",
        *options,
        launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0),
    )
    assert here.digest == outside.digest
    assert here.summary["ledger"]["measured"] == outside.summary["ledger"]["measured"]
    assert not any("lost_residuals" in record for record in outside.reported("round"))


# ---- resuming, and what counts


@pytest.mark.parametrize(
    ("kind", "count"), [("round", 1), ("client_done", 3), ("client_step", 5), ("aggregating", 2), ("round_started", 3)]
)
def test_stopped_anywhere_a_run_ends_in_the_same_digest(int8: Finished, tmp_path: Path, kind: str, count: int) -> None:
    options = (*INT8, "stages.rounds=[3,2]")
    with pytest.raises(Stopped):
        run_tiny(tmp_path, *options, options=RUN, emit=stop_at(kind, count))
    done = run_tiny(tmp_path, *options, options=RUN)
    assert done.digest == int8.digest
    assert not any("lost_residuals" in record for record in done.reported("round"))


class Disturbed(InProcess):
    """The launcher of this process, which does something before, or after, a client's work on a round."""

    def __init__(self, store: Store, *, before: Callable[..., bool], after: Callable[..., None]) -> None:
        super().__init__(store)
        self.store, self.before, self.after = store, before, after

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        for task in tasks:
            assert isinstance(task, RoundTask)
            if not self.before(task):
                yield Outcome(task.client, 1, "not there")
                continue
            ended = list(super().clients(step, [task], deadline_s=deadline_s, emit=emit, need=need))
            self.after(task, self.store)  # before the coordinator hears of its end
            yield from ended


def disturbed(before: Callable[..., bool], after: Callable[..., None]) -> Callable[[Store], Disturbed]:
    """Makes the launcher."""
    return lambda store: Disturbed(store, before=before, after=after)


def test_the_residual_of_an_update_that_was_not_accepted_does_not_count(tmp_path: Path) -> None:
    """A client whose update of round 2 is lost continues as if it had not trained in round 2."""
    options = (*INT8, *THREE, "stages.rounds=[3,0]", "evaluation.every=99")
    folders: list[set[str]] = []

    def lose(task: Any, store: Any) -> None:
        if task.client == LATE and task.server_round == 2:
            assert store.has(paths.update(task.stage_key, 2, LATE)), "it did train"
            store.delete(paths.update(task.stage_key, 2, LATE))
        if task.client == LATE:
            kept = Path(task.place.cache) / LATE / "residuals" / task.stage_key
            folders.append({folder.name for folder in kept.iterdir()})

    def skip(task: Any) -> bool:
        return (task.client, task.server_round) != (LATE, 2)

    lost = run_tiny(tmp_path / "lost", *options, launcher=disturbed(lambda task: True, lose))
    absent = run_tiny(tmp_path / "absent", *options, launcher=disturbed(skip, lambda task, store: None))
    whole = run_tiny(tmp_path / "whole", *options)
    assert folders == [{"001"}, {"001", "002"}, {"001", "003"}], "what cannot count any more is removed"
    assert lost.digest == absent.digest != whole.digest
    last = lost.reported("round")[-1]["clients"][LATE]
    assert last["residual"] == "used"
    counted = last_accepted(round_of(Workbench(lost.store), lost.keys[0], 4))
    assert {client: item["round"] for client, item in counted.items()} == {FIRST: 3, "client-001": 3, LATE: 3}
    told = lost.store.read_ref(paths.round_task(lost.keys[0], 3))
    assert told is not None and told["counted"][LATE]["round"] == 1


def test_a_lost_residual_is_reported_and_changes_the_digest(int8: Finished, tmp_path: Path) -> None:
    def clear(task: Any) -> bool:
        if (task.client, task.server_round) == ("client-001", 3):
            shutil.rmtree(Path(task.place.cache) / "client-001" / "residuals")
        return True

    done = run_tiny(tmp_path, *INT8, "stages.rounds=[3,2]", launcher=disturbed(clear, lambda task, store: None))
    records = done.reported("round")
    assert [record.get("lost_residuals") for record in records] == [None, None, ["client-001"], None, None]
    assert [record["clients"]["client-001"]["residual"] for record in records] == [
        "fresh", "used", "lost", "fresh", "used",
    ]  # fmt: skip
    assert done.summary["stages"][0]["ledger"]["measured"]["lost_residuals"] == 1
    assert any("client-001" in values["message"] for values in done.reported("warning"))
    assert [r["digest"] == told["digest"] for r, told in zip(records, int8.reported("round"), strict=True)][:3] == [
        True, True, False,
    ]  # fmt: skip


def test_without_a_folder_nothing_is_kept_and_that_is_reported(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, *INT8)
    updates = accept(bench, stage, (FIRST, "client-001"))
    first = updates[FIRST]["metrics"]
    assert (first["residual"], first["residual_kept"]) == ("fresh", False)
    commit(bench, stage)
    counted = last_accepted(round_of(bench, stage.key, 2))
    assert counted[FIRST] == {"round": 1, "digest": updates[FIRST]["digest"]}
    bench.store.write_ref(paths.round_task(stage.key, 2), {"counted": counted})
    second = train_client(client_task(bench, stage, FIRST, server_round=2), bench=bench)["metrics"]
    assert (second["residual"], second["residual_kept"]) == ("lost", False)


def test_a_damaged_residual_is_a_lost_one(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "exchange.upload=int8")
    place: dict[str, Any] = {"cache": str(tmp_path / "cache")}
    updates = {c: train_client(client_task(bench, stage, c, **place), bench=bench) for c in (FIRST, "client-001")}
    counted = {client: {"round": 1, "digest": update["digest"]} for client, update in updates.items()}
    bench.store.write_ref(
        paths.accepted(stage.key, 1),
        {"clients": {c: {k: u[k] for k in ("digest", "num_examples", "metrics")} for c, u in updates.items()}},
    )
    commit(bench, stage)
    bench.store.write_ref(paths.round_task(stage.key, 2), {"counted": counted})
    folder = tmp_path / "cache" / FIRST / "residuals" / stage.key / "001"
    file = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    states = {
        c: train_client(client_task(bench, stage, c, server_round=2, **place), bench=bench)["metrics"]["residual"]
        for c in updates
    }
    assert states == {FIRST: "lost", "client-001": "used"}
