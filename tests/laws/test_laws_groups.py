"""Laws of clients that are not alike: a tensor is averaged over those who train it, and the ledger knows each kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lwfed.cost.groups import fitted_blocks
from lwfed.launch.in_process import InProcess
from lwfed.round.aggregate_round import aggregate_round
from lwfed.run.runs import Options
from lwfed.run.tasks import ClientTask
from lwfed.steps.prepare import architectures_of, count_architecture, draft
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.types.errors import QuorumError, SpecError
from lwfed.types.tensors import unit_of
from tests.tiny import (
    DEPTHS,
    ONE_STAGE,
    accept,
    begun,
    measured_of,
    round_task,
    run_tiny,
    tensors_of,
    tiny_spec,
    update_tensors,
)

THREE = ("federation.num_clients=3", "data.shapes.train=31")
WEAK = "federation.groups=[{name: weak, clients: [client-002], max_blocks: 1}]"
WHOLE = ("strategy=end_to_end", *ONE_STAGE, *THREE)
EARLY = {"image.stem", "image.blocks.0", "text.stem", "text.blocks.0"}
DEEP = (
    "strategy=progressive", "stages.rounds=[1,1,2]", *THREE,
    "model.encoders.image.config.depth=3", "model.encoders.text.config.n_layers=3",
)  # fmt: skip
LAYERWISE = "federation.groups=[{name: slow, clients: [client-000..client-001], strategy: layerwise}]"


def test_if_all_clients_are_in_a_group_it_is_its_strategy(tmp_path: Path) -> None:
    everyone = "federation.groups=[{name: all-of-them, clients: [client-000..client-002], strategy: layerwise}]"
    grouped = run_tiny(tmp_path / "a", "strategy=progressive", *THREE, everyone)
    layerwise = run_tiny(tmp_path / "b", *THREE)
    assert grouped.digest == layerwise.digest
    same = [(plan.trained, plan.cut, plan.levers) for plan in layerwise.plans]
    assert [(plan.trained, plan.cut, plan.levers) for plan in grouped.plans] == same


def test_each_tensor_is_the_mean_over_those_who_train_it(tmp_path: Path) -> None:
    clients = ["client-000", "client-001", "client-002"]
    bench, stage, _ = begun(tmp_path, *WHOLE, WEAK)
    updates = accept(bench, stage, clients)
    sent = {client: update_tensors(bench, stage, client) for client in clients}
    assert {unit_of(n) for n in sent["client-000"]} - {unit_of(n) for n in sent["client-002"]} == EARLY
    aggregate_round(round_task(bench, stage), bench=bench)
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 1))
    assert checkpoint is not None
    for name, value in tensors_of(bench.store, checkpoint).items():
        senders = [client for client in clients if name in sent[client]]
        assert senders == (clients[:2] if unit_of(name) in EARLY else clients)
        if not value.is_floating_point():
            continue
        weights = [updates[client]["num_examples"] for client in senders]
        total = sum(w * sent[c][name].numpy().astype(np.float64) for c, w in zip(senders, weights, strict=True))
        expected = (total / sum(weights)).astype(np.float32)
        assert np.allclose(value.numpy(), expected, rtol=0, atol=1e-7), name


@pytest.mark.parametrize("exchange", [(), ("exchange.upload=int8", "exchange.download=bf16")], ids=["fp32", "lossy"])
def test_sums_while_clients_train_have_the_bits_of_those_from_the_store(
    tmp_path: Path, exchange: tuple[str, ...]
) -> None:
    class Forgetful(InProcess):
        holds_model = False

        def _begin_fold(self, tasks: object) -> None:
            return None

    settings = (*WHOLE, WEAK, "stages.rounds=[3]", *exchange)
    summed, read = run_tiny(tmp_path / "a", *settings), run_tiny(tmp_path / "b", *settings, launcher=Forgetful)
    assert summed.digest == read.digest


def test_a_weak_client_reads_the_cached_outputs_of_what_nobody_trains(tmp_path: Path) -> None:
    """Stage 3 of window 2: one block is frozen and cached, another runs without gradients in each step of the slow."""
    window = (*DEEP, "strategy=window", LAYERWISE)
    cached = run_tiny(tmp_path / "a", *window, "levers.prefix_cache=always")
    never = run_tiny(tmp_path / "b", *window, "levers.prefix_cache=never")
    last = cached.plans[-1]
    assert last.cut == {"image": 1, "text": 1} and last.work_of("client-000").cut == {"image": 2, "text": 2}
    assert last.levers.views and not never.plans[-1].levers.views
    losses = [[record["metrics"]["train/loss"] for record in done.reported("round")] for done in (cached, never)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "within rounding"


@pytest.mark.parametrize("prefix_cache", ["always", "never"])
@pytest.mark.parametrize("last_block", ["full", "absorbed"])
def test_the_ledger_prices_each_kind_of_client(tmp_path: Path, prefix_cache: str, last_block: str) -> None:
    levers = (f"levers.prefix_cache={prefix_cache}", f"levers.last_block={last_block}")
    done = run_tiny(tmp_path, *DEEP, "strategy=window", LAYERWISE, *levers)
    for stage, (plan, predicted) in enumerate(zip(done.plans, done.run.predicted, strict=True), start=1):
        assert list(predicted["kinds"]) == ["slow", "others"]
        for record in (one for one in done.reported("round") if one["stage"] == stage):
            for client, metrics in record["clients"].items():
                cost = predicted["kinds"][plan.work_of(client).kind]
                assert metrics["bytes_up"] == cost["upload_bytes"]
                assert metrics["bytes_down"] == cost["snapshot_bytes"]
                if record["round"] == 1:
                    assert metrics["bytes_down_frozen"] == cost["newly_frozen_bytes"]
            if record["round"] == 1:
                measured = {plan.work_of(client).kind: metrics for client, metrics in measured_of(record).items()}
                assert set(measured) == {"slow", "others"}, "one of each kind"
                for kind, metrics in measured.items():
                    cost, step = predicted["kinds"][kind], metrics["step_flops"]
                    for pass_ in ("forward", "backward"):
                        assert step[pass_] / step["batch"] == pytest.approx(cost[f"{pass_}_flops"], rel=0.25)
                    assert metrics["gradients_bytes"] == cost["gradients_bytes"]
                    assert metrics["peak_tensor_bytes"] == pytest.approx(cost["peak_bytes"], rel=0.15)
    slow, others = done.run.predicted[-1]["kinds"].values()
    assert slow["peak_bytes"] < others["peak_bytes"] and slow["upload_bytes"] < others["upload_bytes"]


def fitted(*overrides: str) -> dict[str, tuple[int | None, ...]]:
    spec = tiny_spec("runs", *overrides)
    architectures = architectures_of(spec.model, folder=None, count=count_architecture)
    return fitted_blocks(spec, depths=DEPTHS, architectures=architectures)


def peaks(tmp_path: Path) -> list[int]:
    """Predicted peaks of the weak in one stage of two blocks, for 0, 1 and 2 trained blocks."""
    found = []
    for blocks in range(3):
        weak = WEAK.replace("max_blocks: 1", f"max_blocks: {blocks}")
        run = draft(tiny_spec(tmp_path, *WHOLE, weak), store=LocalStore(tmp_path), options=Options())
        found.append(run.predicted[0]["kinds"]["weak"]["peak_bytes"])
    return found


def test_memory_decides_how_many_blocks_are_trained(tmp_path: Path) -> None:
    of = peaks(tmp_path)
    assert of[0] < of[1] < of[2]

    def weak(memory: int, more: str = "") -> str:
        return f"federation.groups=[{{name: weak, clients: [client-002], device_memory: {memory}B{more}}}]"

    for memory, blocks in ((of[2], 2), (of[2] - 1, 1), (of[1], 1), (of[1] - 1, 0), (of[0], 0)):
        assert fitted(*WHOLE, weak(memory)) == {"weak": (blocks,)}
    with pytest.raises(SpecError, match=r"group weak have .*B, and stage 1 needs .* for its heads alone"):
        fitted(*WHOLE, weak(of[0] - 1))
    assert fitted(*WHOLE, weak(of[2] - 1, ", too_small: leave_out")) == {"weak": (None,)}
    assert fitted(*WHOLE, weak(of[2], ", too_small: leave_out")) == {"weak": (2,)}


def test_clients_leave_out_the_stages_that_do_not_fit(tmp_path: Path) -> None:
    progressive = ("strategy=progressive", *THREE)
    costs = run_tiny(tmp_path / "a", *progressive).run.predicted
    between = (costs[0]["peak_bytes"] + costs[1]["peak_bytes"]) // 2
    group = (
        f"federation.groups=[{{name: weak, clients: [client-002], device_memory: {between}B, too_small: leave_out}}]"
    )
    done = run_tiny(tmp_path / "b", *progressive, group)
    assert done.run.fitted == {"weak": [1, None]}
    cohorts = [tuple(one["cohort"]) for one in done.reported("round")]
    everyone = ("client-000", "client-001", "client-002")
    assert cohorts == [everyone, everyone, everyone[:2], everyone[:2]]
    assert list(done.run.data.clients) == list(everyone), "its data are checked even so"
    for key, why in (
        ("federation.min_fit_clients=3", "3 are needed"),
        ("federation.require=[client-002]", "client-002, whose device is too small for stage 2"),
    ):
        with pytest.raises(SpecError, match=why):
            run_tiny(tmp_path / "c", *progressive, group, key)


def test_clients_that_leave_a_stage_out_do_not_count_in_a_sample_by_size(tmp_path: Path) -> None:
    """With two of three clients left, both are drawn always, so their weights are their sizes: the mean is FedAvg's."""
    progressive = ("strategy=progressive", *THREE)
    costs = run_tiny(tmp_path / "a", *progressive).run.predicted
    between = (costs[0]["peak_bytes"] + costs[1]["peak_bytes"]) // 2
    weak = f"name: weak, clients: [client-002], device_memory: {between}B, too_small: leave_out"
    group = f"federation.groups=[{{{weak}}}]"
    plain = run_tiny(tmp_path / "b", *progressive, group)
    sized = run_tiny(tmp_path / "c", *progressive, group, "federation.sampling=by_size", "federation.fraction_fit=1.0")
    assert sized.digest == plain.digest


def test_a_unit_that_nobody_trained_keeps_its_weights_and_the_servers_state(tmp_path: Path) -> None:
    """The first round has a strong client, the second has the weak alone."""
    weak = "federation.groups=[{name: weak, clients: [client-001..client-002], max_blocks: 1}]"
    one_by_one = ("federation.fraction_fit=0.34", "federation.min_fit_clients=1", "federation.sampling=round_robin")
    kept = ("federation.unsent=keep", "federation.server.kind=fedadam", "stages.rounds=[3]")
    settings = (*WHOLE, weak, *one_by_one, *kept)
    done = run_tiny(tmp_path, *settings)
    cohorts = [one["cohort"][0] for one in done.reported("round")]
    assert sorted(cohorts) == ["client-000", "client-001", "client-002"]
    strong = cohorts.index("client-000") + 1
    for number in range(1, 4):
        before, after = (done.checkpoint(1, one) for one in (number - 1, number))
        for unit in EARLY:
            assert (before.blocks[unit] == after.blocks[unit]) is (number != strong)
            assert (after.server.get(unit) == before.server.get(unit)) is (number != strong)
        assert before.blocks["image.blocks.1"] != after.blocks["image.blocks.1"]
    with pytest.raises(SpecError, match=r"round \d of stage 1 will have 0 update\(s\) of image.stem and needs 1"):
        run_tiny(tmp_path / "strict", *settings, "federation.unsent=fail")


def test_a_quorum_that_nobody_can_meet_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"round 1 of stage 1 will have 3 update\(s\) of .* and needs 9"):
        run_tiny(tmp_path, *THREE, "federation.unit_quorum=9")


def test_a_unit_that_is_missing_because_clients_failed_says_why(tmp_path: Path) -> None:
    weak = "federation.groups=[{name: weak, clients: [client-001..client-002], max_blocks: 1}]"

    class Lossy(InProcess):
        def _train(self, task: ClientTask, **kwargs: object):  # type: ignore[no-untyped-def]  # as the launcher's
            if task.client == "client-000":
                raise RuntimeError("its data are gone")
            return super()._train(task, **kwargs)  # type: ignore[arg-type]

    with pytest.raises(QuorumError, match=r"of image.stem .* \(client-000: RuntimeError: its data are gone\) -> fix"):
        run_tiny(tmp_path, *WHOLE, weak, launcher=Lossy)


def test_a_required_client_is_in_every_cohort_and_no_round_ends_without_it(tmp_path: Path) -> None:
    settings = (
        "federation.num_clients=5",
        "federation.fraction_fit=0.4",
        "federation.require=[client-003]",
        "data.shapes.train=40",
    )
    done = run_tiny(tmp_path / "a", *settings)
    cohorts = [one["cohort"] for one in done.reported("round")]
    assert all("client-003" in cohort and len(cohort) == 2 for cohort in cohorts)
    assert len({client for cohort in cohorts for client in cohort}) > 2, "the others change"

    class Lossy(InProcess):
        def _train(self, task: ClientTask, **kwargs: object):  # type: ignore[no-untyped-def]  # as the launcher's
            if task.client == "client-003":
                raise RuntimeError("its data are gone")
            return super()._train(task, **kwargs)  # type: ignore[arg-type]

    with pytest.raises(QuorumError, match=r"no update of client-003, which federation.require names"):
        run_tiny(tmp_path / "b", *settings, "federation.min_fit_clients=1", launcher=Lossy)


ONE = "name: a, max_blocks: 1, clients: [client-001]"


@pytest.mark.parametrize(
    ("groups", "overrides", "message"),
    [
        (
            "{name: a, clients: [client-009], max_blocks: 1}",
            "",
            r"groups.a.clients` names 'client-009', which is no client",
        ),
        ("{name: a, clients: [client-002..client-001], max_blocks: 1}", "", r"client-002..client-001 runs backwards"),
        ("{name: a, clients: [client-001, client-000..client-001], max_blocks: 1}", "", "names client-001 twice"),
        (f"{{{ONE}}}, {{name: b, clients: [client-001], max_blocks: 1}}", "", "client-001 is in the groups a and b"),
        (
            f"{{{ONE}}}, {{name: a, clients: [client-000], max_blocks: 1}}",
            "",
            r"two of `federation.groups` are called a",
        ),
        ("{name: others, clients: [client-001]}", "", "take another name"),
        (f"{{{ONE}, device_memory: much}}", "", "`much` is not a size"),
        ("{name: a, clients: [client-001], max_blocks: -1}", "", "max_blocks"),
        (f"{{{ONE}, too_small: leave_out}}", "", "needs `device_memory`"),
        (f"{{{ONE}, strategy: layerwise}}", "strategy=end_to_end", "end_to_end has one stage"),
        (
            "",
            "federation.modality_quorum.audio=2",
            r"modality_quorum` names 'audio'; the model has image, text",
        ),
        ("", "federation.unit_quorum=0", "unit_quorum"),
        ("{name: a, clients: [client-001]}", "", "trains what all do"),
        (f"{{{ONE}}}", "federation.oversample=1.5", "may lack a unit"),
        (f"{{{ONE}}}", "federation.sampling=by_size", "exclude one another"),
        ("", "federation.unit_quorum=2 federation.oversample=1.5", "may lack a unit"),
        ("", "federation.unsent=keep exchange.upload=int8", "was not used"),
        (f"{{{ONE}}}", "federation.eligible_fraction=0.34", "1 of 3 take part"),
        ("", "federation.require=[client-000] federation.oversample=2", "would not wait"),
        ("", "federation.require=[client-000] federation.sampling=by_size", "biased"),
        ("", "federation.require=[client-77]", r"`federation.require` names 'client-77'"),
    ],
)
def test_nonsense_is_refused_by_name(groups: str, overrides: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_spec("runs", *THREE, f"federation.groups=[{groups}]", *overrides.split())
