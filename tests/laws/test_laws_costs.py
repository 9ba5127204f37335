"""Laws of the ledger: what it predicts is what a store sees and what a real step costs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lwfed.cost.architectures import architectures_of
from lwfed.cost.ledger import stage_costs
from lwfed.cost.stage_cost import StageCost
from lwfed.data.batches import Batch, epoch_length, train_batches
from lwfed.launch.in_process import InProcess
from lwfed.models.build import skeleton, tensor_specs
from lwfed.round.aggregate_round import aggregate_round
from lwfed.round.train_client import train_client
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.launcher import Emit
from lwfed.run.tasks import ClientTask, Place, RoundTask, ServerTask
from lwfed.steps.prepare import count_architecture
from lwfed.store import paths
from lwfed.store.counting import CountingStore
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from tests.tiny import (
    ENCODERS,
    Finished,
    accept,
    begun,
    client_task,
    measured_of,
    prepared,
    round_task,
    run_tiny,
    tiny_spec,
)

STRATEGIES = ("layerwise", "progressive", "end_to_end")
OBJECTIVES = {
    "contrastive": "model.objective={kind: contrastive, temperature: 0.07}",
    "supervised": "model.objective={kind: supervised, hidden: 12}",
    "learnable": "model.objective={temperature: 0.07, learnable_temperature: true}",
    "aligned": "model.objective={temperature: 0.07, alignment: {weight: 0.5}}",
    "sum": "model.objective={kind: supervised, hidden: 12, fusion: concat_sum, label_smoothing: 0.1}",
    "attention": "model.objective={kind: supervised, hidden: 12, fusion: concat_attention, class_weights: balanced}",
    "coattention": "model.objective={kind: supervised, hidden: 12, fusion: concat_coattention, alignment: {weight: 1}}",
}


class Weighing(InProcess):
    """The launcher of this process, which weighs the updates that lie in the store before they are aggregated."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.weights: dict[tuple[str, int, str], int] = {}

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        assert isinstance(task, RoundTask)
        folder = Path(self.bench.store.uri) / paths.round_folder(task.stage_key, task.server_round) / "updates"
        for client in sorted(folder.iterdir()):
            size = sum(file.stat().st_size for file in client.glob("*.safetensors"))
            self.weights[task.stage_key, task.server_round, client.name] = size
        super().server(step, task, emit=emit)


@pytest.mark.parametrize(
    ("strategy", "up", "down", "encoders"),
    [
        *((strategy, "fp32", "fp32", "vit-distilbert") for strategy in STRATEGIES),
        ("layerwise", "int8", "int8", "vit-distilbert"), ("progressive", "bf16", "bf16", "vit-distilbert"),
        ("end_to_end", "int8", "bf16", "vit-distilbert"), ("layerwise", "bf16", "fp32", "vit-distilbert"),
        ("progressive", "fp32", "int8", "vit-distilbert"),
        *((strategy, "fp32", "fp32", "resnet-mobilebert") for strategy in STRATEGIES),
        ("layerwise", "int8", "int8", "resnet-mobilebert"), ("progressive", "bf16", "int8", "resnet-bert"),
    ],
)  # fmt: skip
def test_bytes_on_disk_are_the_ledgers(tmp_path: Path, strategy: str, up: str, down: str, encoders: str) -> None:
    launchers: list[Weighing] = []

    def make(store: Store) -> Weighing:
        launchers.append(Weighing(store))
        return launchers[-1]

    exchange = (f"exchange.upload={up}", f"exchange.download={down}")
    done = run_tiny(tmp_path, f"strategy={strategy}", *exchange, *ENCODERS[encoders], launcher=make)
    weights = launchers[0].weights
    assert len(weights) == 8
    for stage, (key, cost) in enumerate(zip(done.keys, done.run.predicted, strict=True), start=1):
        rounds = [record for record in done.reported("round") if record["stage"] == stage]
        for record in rounds:
            for client, metrics in record["clients"].items():
                assert weights[key, record["round"], client] == cost["exchanged_bytes"] == cost["upload_bytes"]
                assert metrics["bytes_up"] == cost["upload_bytes"]
                fetched = cost["snapshot_bytes"] if record["round"] == 1 else cost["change_bytes"]
                assert metrics["bytes_down"] == fetched, "the model once, and then what changed"
                frozen = cost["newly_frozen_bytes"] if record["round"] == 1 else 0
                assert metrics["bytes_down_frozen"] == frozen, "a frozen block is sent once"
        measured = done.summary["stages"][stage - 1]["ledger"]["measured"]
        assert measured["bytes_up"] == cost["upload_bytes"]
        assert measured["bytes_down"] == cost["download_bytes"]
        assert (cost["upload_bytes"] < cost["snapshot_bytes"]) == (up != "fp32")
        assert (cost["change_bytes"] < cost["snapshot_bytes"]) == (down != "fp32")
        assert measured["bytes_down_frozen"] == cost["newly_frozen_bytes"] / len(rounds)
        assert cost["frozen_bytes"] == sum(
            done.checkpoint(stage).blocks[u].nbytes for u in done.plans[stage - 1].frozen
        )


@pytest.mark.parametrize(
    ("codec", "encoders"),
    [*((codec, "vit-distilbert") for codec in ("fp32", "bf16", "int8")), ("int8", "resnet-mobilebert")],
)
def test_a_store_sees_the_ledgers_bytes(tmp_path: Path, codec: str, encoders: str) -> None:
    """One client of stage 2, round 1, by itself: all that it reads and writes, counted outside of lwfed's own count."""
    exchange = (f"exchange.upload={codec}", f"exchange.download={codec}")
    settings = ("store.keep_rounds=0", "stages.rounds=[1,1]", *exchange, *ENCODERS[encoders])
    done = run_tiny(tmp_path / "store", *settings)
    store = CountingStore(done.store)
    key, cost, cache = done.keys[1], done.run.predicted[1], tmp_path / "cache"
    for cached, frozen in ((None, cost["frozen_bytes"]), (cache, cost["frozen_bytes"]), (cache, 0)):
        for written in list(done.store.list(paths.updates(key, 1, "client-000") + "/")):
            done.store.delete(written)
        bench = Workbench(store)  # a process that has nothing at hand
        store.bytes_read = store.bytes_written = 0
        place = Place(device="cpu", cache=None if cached is None else str(cached))
        task = ClientTask(store=store.uri, stage_key=key, server_round=1, place=place, client="client-000")
        update = train_client(task, bench=bench)
        assert store.bytes_written == cost["upload_bytes"] == update["metrics"]["bytes_up"]
        held = codec != "fp32" and (cached, frozen) == (cache, 0)  # it has trained on this very model before
        assert store.bytes_read == (0 if held else cost["snapshot_bytes"]) + frozen
        assert update["metrics"]["bytes_down_frozen"] == frozen


def test_an_update_that_is_committed_moves_no_byte(tmp_path: Path) -> None:
    store = CountingStore(LocalStore(tmp_path))
    bench, stage, _ = begun(tmp_path, store=store)
    first = train_client(client_task(bench, stage, "client-000"), bench=bench)
    store.bytes_read = store.bytes_written = 0
    assert train_client(client_task(bench, stage, "client-000"), bench=bench) == first
    assert store.bytes_read == store.bytes_written == 0


def test_the_server_reads_each_update_once_and_writes_one_model(tmp_path: Path) -> None:
    store = CountingStore(LocalStore(tmp_path))
    bench, stage, _ = begun(tmp_path, "federation.num_clients=3", "evaluation.every=99", store=store)
    accept(bench, stage, ["client-000", "client-001", "client-002"])
    specs = tensor_specs(bench.skeleton(stage.key))
    items = sum(spec.nbytes for spec in specs.values())
    cost = runs.read_run(bench.store, next(runs.run_ids(bench.store))).predicted[0]
    store.bytes_read = store.bytes_written = 0
    aggregate_round(round_task(bench, stage), bench=bench)
    sent = [store.read_ref(paths.update(stage.key, 1, f"client-{n:03d}")) for n in range(3)]
    files = sum(block["nbytes"] for update in sent for block in update["blocks"].values())
    assert store.bytes_read == files > 3 * items, "units as small as these are read whole, with their headers"
    assert store.bytes_written == cost["exchanged_bytes"]


@pytest.mark.parametrize(
    ("objective", "encoders"),
    [*product(OBJECTIVES, ("vit-distilbert",)), *product(("contrastive", "supervised"), [*ENCODERS][1:])],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parameters_are_the_modules(tmp_path: Path, strategy: str, objective: str, encoders: str) -> None:
    overrides = (f"strategy={strategy}", OBJECTIVES[objective], *ENCODERS[encoders])
    run = prepared(tiny_spec(tmp_path, "stages.rounds=[0,1]", *overrides), store=LocalStore(tmp_path))
    for plan, cost in zip(runs.plans_of(run), run.predicted, strict=True):
        module = skeleton(plan.model, depth=plan.depth, num_classes=run.num_classes)
        specs = tensor_specs(module)
        assert cost["present_params"] == sum(p.numel() for p in module.parameters())
        trained = [module.get_submodule(unit) for unit in plan.trained]
        assert cost["trained_params"] == sum(p.numel() for unit in trained for p in unit.parameters())
        assert cost["exchanged_params"] == cost["trained_params"]
        heads = [spec.nbytes for name, spec in specs.items() if ".projection." in name]
        received = sum(heads) if plan.model.objective.alignment else 0
        assert cost["weights_bytes"] == sum(spec.nbytes for spec in specs.values()) + received
        assert cost["gradients_bytes"] == 4 * cost["trained_params"]
        assert cost["optimizer_bytes"] == 8 * cost["trained_params"]


@pytest.mark.parametrize(
    ("strategy", "objective", "last_block", "encoders"),
    [
        *product(STRATEGIES, ("contrastive", "supervised"), ("full", "row", "absorbed"), ("vit-distilbert",)),
        *product(STRATEGIES, [*OBJECTIVES][2:], ("auto",), ("vit-distilbert",)),
        *product(STRATEGIES, ("contrastive",), ("full", "absorbed"), ("resnet-mobilebert",)),
        ("layerwise", "supervised", "full", "resnet-bert"),
        ("progressive", "supervised", "row", "resnet-bert"),
    ],
)
def test_flops_and_peak_of_a_real_step_are_the_ledgers(
    tmp_path: Path, strategy: str, objective: str, last_block: str, encoders: str
) -> None:
    """At the batch's own length of text. In a model this small the loss counts: its similarity matrices are added."""
    levers = (f"strategy={strategy}", f"levers.last_block={last_block}", *ENCODERS[encoders])
    done = run_tiny(tmp_path, "stages.rounds=[1,1]", *levers, OBJECTIVES[objective])
    for stage, plan in enumerate(done.plans, start=1):
        record = next(record for record in done.reported("round") if record["stage"] == stage)
        for client, metrics in measured_of(record).items():
            batch = first_batch(done, stage, client)
            size, length = batch.inputs["text"]["ids"].shape
            cost = price(done, stage, tokens=length)
            width = plan.model.projection.out
            contrasts = plan.model.objective.kind == "contrastive"
            loss = 2 * (2 * size * size * width) if contrasts else 0  # a @ b.T and b @ a.T
            step = metrics["step_flops"]
            assert step["batch"] == size
            assert step["forward"] == pytest.approx(size * cost.forward_flops + loss, rel=0.02)
            assert step["backward"] == pytest.approx(size * cost.backward_flops + 2 * loss, rel=0.02)
            assert metrics["peak_tensor_bytes"] == pytest.approx(cost.peak_bytes, rel=0.10)
            assert metrics["bytes_up"] == cost.upload_bytes
        first = done.summary["stages"][stage - 1]["ledger"]["measured"]
        (one,) = measured_of(record).values()
        assert first["forward_flops"] == pytest.approx(one["step_flops"]["forward"] / one["step_flops"]["batch"])


SAVING = (
    {"step_in_backward": "true", "moments": "int8"},
    {"moments": "bf16"},
    {"activation_checkpointing": "true"},
    {"activation_checkpointing": "true", "step_in_backward": "true", "moments": "bf16"},
)


@pytest.mark.parametrize(
    ("strategy", "options", "encoders"),
    [
        *product(("layerwise", "end_to_end"), SAVING, ("vit-distilbert",)),
        *product(("layerwise", "end_to_end"), SAVING[2:3], ("resnet-mobilebert", "resnet-bert")),
        ("progressive", SAVING[3], "resnet-mobilebert"),
    ],
)
def test_a_step_that_saves_memory_costs_what_the_ledger_says(
    tmp_path: Path, strategy: str, options: dict[str, str], encoders: str
) -> None:
    overrides = [*(f"training.{key}={value}" for key, value in options.items()), *ENCODERS[encoders]]
    done = run_tiny(tmp_path, f"strategy={strategy}", "stages.rounds=[1,1]", *overrides)
    for stage, plan in enumerate(done.plans, start=1):
        record = next(record for record in done.reported("round") if record["stage"] == stage)
        for client, metrics in measured_of(record).items():
            size, length = first_batch(done, stage, client).inputs["text"]["ids"].shape
            cost = price(done, stage, tokens=length)
            loss = 2 * (2 * size * size * plan.model.projection.out)
            step = metrics["step_flops"]
            assert step["forward"] == pytest.approx(size * cost.forward_flops + loss, rel=0.02)
            assert step["backward"] == pytest.approx(size * cost.backward_flops + 2 * loss, rel=0.02)
            assert metrics["peak_tensor_bytes"] == pytest.approx(cost.peak_bytes, rel=0.10)
            assert metrics["activations_bytes"] == pytest.approx(cost.activations_bytes, rel=0.10)
            assert metrics["gradients_bytes"] == cost.gradients_bytes
            assert metrics["optimizer_bytes"] == cost.optimizer_bytes


@pytest.mark.parametrize("encoders", ["vit-distilbert", "resnet-mobilebert"])
def test_options_that_save_memory_do_not_change_a_bit(tmp_path: Path, encoders: str) -> None:
    """Nor are BatchNorm's statistics updated twice where blocks are recomputed."""
    options, others = ("training.activation_checkpointing=true", "training.step_in_backward=true"), ENCODERS[encoders]
    digests = {run_tiny(tmp_path / str(len(chosen)), *chosen, *others).digest for chosen in ((), options[:1], options)}
    assert len(digests) == 1


def test_gradient_accumulation_lowers_the_peak_as_predicted(tmp_path: Path) -> None:
    peaks = {}
    for parts in (1, 2):
        accumulated = f"training.gradient_accumulation={parts}"
        done = run_tiny(tmp_path / str(parts), "stages.rounds=[1,0]", "levers.last_block=full", accumulated)
        metrics = done.reported("round")[0]["clients"]["client-000"]
        length = first_batch(done, 1, "client-000").inputs["text"]["ids"].shape[1]
        peaks[parts] = (metrics["peak_tensor_bytes"], price(done, 1, tokens=length).peak_bytes)
    assert peaks[2][1] < 0.7 * peaks[1][1]
    assert peaks[2][0] == pytest.approx(peaks[2][1], rel=0.10)


def first_batch(done: Finished, stage: int, client: str) -> Batch:
    """Reads what a client's first step of a stage's first round has read."""
    plan = done.plans[stage - 1]
    written = done.bench.stage(done.keys[stage - 1])
    place = Place(device="cpu", root=runs.spec_of(done.run).data.root)
    held, _ = done.bench.share(written, place, client)
    epoch = epoch_length(len(held), plan.training.batch_size)
    steps = plan.training.local_epochs * epoch
    batches = train_batches(
        done.bench.data(written, place),
        examples=held,
        settings=done.bench.inputs(written),
        batch_size=plan.training.batch_size,
        seed=plan.seed,
        first_view=(plan.first_round - 1) * -(-steps // epoch),
        augment=plan.data.augment,
        workers=0,
        num_batches=1,
    )
    return next(batches)


def price(done: Finished, stage: int, *, tokens: int) -> StageCost:
    """The ledger at a length of text."""
    model = runs.spec_of(done.run).model
    counted = Path(done.store.uri) / "counted"
    architectures = architectures_of(model, folder=counted, count=count_architecture)
    lengths: dict[str, Any] = {m: item.tokens for m, item in architectures.items()} | {"text": tokens}
    costs = stage_costs(
        done.plans, architectures=architectures, num_classes=done.run.num_classes, tokens=lengths
    )  # fmt: skip
    return costs[stage - 1]


def test_the_first_batch_is_what_the_client_saw(finished: Finished) -> None:
    """The helper above must not drift from the client: a batch of full size, from the client's own share."""
    batch = first_batch(finished, 1, "client-000")
    written = finished.bench.stage(finished.keys[0])
    held, _ = finished.bench.share(written, Place(device="cpu"), "client-000")
    assert set(batch.ids) <= {example.id for example in held} and len(batch.ids) == 8
    assert isinstance(batch.inputs["image"], Tensor)
