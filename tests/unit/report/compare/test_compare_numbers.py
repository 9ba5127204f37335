"""A comparison's numbers are those of the runs' records, and what cannot be compared is refused by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lwfed.report.compare.budget import Budget, parse_budget, reaches, rounds_within
from lwfed.report.compare.compare import RunHistory, compare_runs, plausible
from lwfed.report.compare.records import spread
from lwfed.report.compare.settings import differences, work_of
from lwfed.report.compare.table import budget_rows, difference_text, quality_text, rows, stage_memory
from lwfed.steps.experiment import measured_total
from lwfed.types.errors import SpecError
from lwfed.types.round_records import ClientRecord
from tests.tiny import ONE_STAGE, tiny_spec

Make = Callable[..., list[RunHistory]]
METRIC = "test/t2i/R@1"


def test_groups_stand_in_order_with_their_seeds(six: list[RunHistory]) -> None:
    found = compare_runs(six)
    assert [group.label for group in found.groups] == ["end to end", "layerwise", "progressive"]
    assert {group.seeds for group in found.groups} == {(0, 1)} and found.metric == METRIC
    assert found.reference is found.groups[0] and found.notes == ()


def filling(client: ClientRecord, cost: dict[str, Any]) -> float:
    """Returns the FLOPs of filling a client's cache."""
    return sum(
        count * cost["fill_from"][modality][units]
        for modality, counts in client.prefix_filled.items()
        for units, count in counts.items()
    )


def test_sums_are_those_of_a_client_in_every_round(six: list[RunHistory]) -> None:
    for run, stages, rounds in six:
        curve = next(t for g in compare_runs(six).groups for t in g.runs if t.run_id == run.run_id)
        last = curve.points[-1]
        up_and_down = [
            statistics.fmean(client.bytes_up + client.bytes_down for client in record.clients.values())
            for record in rounds
        ]
        assert last.moved_bytes == pytest.approx(sum(up_and_down), rel=1e-12)
        # what the ledger said, to the byte: each way, each round
        costs = {cost["stage"]: cost for cost in run.predicted}
        assert last.moved_bytes == sum(2 * costs[record.stage]["exchanged_bytes"] for record in rounds)
        # 12 examples a client, one epoch: the FLOPs of 12 samples a round
        each = {s.stage: s.ledger.measured for s in stages}
        flops = sum(12 * (each[r.stage]["forward_flops"] + each[r.stage]["backward_flops"]) for r in rounds)
        # and those of the outputs that it computed, once
        spent = [[filling(client, costs[record.stage]) for client in record.clients.values()] for record in rounds]
        assert any(spent[2]) == (run.strategy == "layerwise") and not any(spent[0] + spent[1] + spent[3])
        flops += sum(map(statistics.fmean, spent))
        assert last.flops == pytest.approx(flops, rel=1e-12)
        assert last.peak_bytes == max(s.ledger.measured["peak_tensor_bytes"] for s in stages)
        assert [point.quality.mean for point in curve.points if point.quality] == [
            record.metrics[METRIC] for record in rounds
        ]
        assert [point.round for point in curve.points] == [1, 2, 3, 4] and curve.complete
        assert curve.digest == stages[-1].digest


def test_what_a_client_spends_never_shrinks_and_frozen_blocks_count_once(six: list[RunHistory]) -> None:
    for group in compare_runs(six).groups:
        for quantity in ("bytes", "flops", "memory"):
            spent = [point.spent(quantity) for point in group.means]  # type: ignore[arg-type]  # of three words
            assert spent == sorted(spent)
        assert (group.last.frozen_bytes > 0) == (group.strategy == "layerwise")
        assert group.last.spent("bytes") == group.last.moved_bytes + group.last.frozen_bytes


def test_clients_that_join_late_do_not_fetch_for_one_that_is_always_there(make_histories: Make) -> None:
    """Half of the clients take part in a round: some fetch the frozen blocks in the last round, and none twice."""
    cohorts = "federation.num_clients=4 federation.fraction_fit=0.5 levers.prefix_cache=always"
    ((run, stages, rounds),) = make_histories(f"layerwise:0 {cohorts} stages.rounds=[2,4]")
    later = [client for record in rounds[3:] for client in record.clients.values()]
    assert any(c.bytes_down_frozen for c in later) and not all(c.bytes_down_frozen for c in later)
    first, second = run.predicted
    last = compare_runs([(run, stages, rounds)]).groups[0].last
    assert last.frozen_bytes == second["newly_frozen_bytes"] > 0 == first["newly_frozen_bytes"]
    assert measured_total(stages)["bytes_down_frozen"] == second["newly_frozen_bytes"]
    samples = [6 * (cost["forward_flops"] + cost["backward_flops"]) for cost in (first, second)]
    assert last.flops == pytest.approx(2 * samples[0] + 4 * samples[1] + 6 * second["fill_flops"], rel=0.02)
    assert 6 * second["fill_flops"] > 0.02 * last.flops, "once, and seen"


def test_means_and_deviations_over_seeds(six: list[RunHistory]) -> None:
    found = compare_runs(six)
    for group in found.groups:
        finals = [curve.final.mean for curve in group.runs]
        assert group.final.mean == statistics.fmean(finals) and group.final.std == statistics.stdev(finals)
        for mean, *points in zip(group.means, *(curve.points for curve in group.runs), strict=True):
            assert mean.quality is not None
            assert mean.quality.std == statistics.stdev([point.quality.mean for point in points])
    assert spread([0.5]).std is None


def test_ratios_are_against_end_to_end(six: list[RunHistory]) -> None:
    whole, layerwise, progressive = rows(compare_runs(six))
    assert whole["less"] == {"bytes": 1.0, "flops": 1.0, "memory": 1.0} and whole["quality_difference"] == 0
    spent = layerwise["moved_bytes"] + layerwise["frozen_bytes"]
    assert layerwise["less"]["bytes"] == whole["moved_bytes"] / spent > 1
    assert layerwise["less"]["flops"] == whole["flops"] / layerwise["flops"] > 1
    assert progressive["less"]["flops"] > 1
    assert layerwise["quality_difference"] == layerwise["quality"]["mean"] - whole["quality"]["mean"]
    alone = rows(compare_runs([histories for histories in six if histories[0].strategy != "end_to_end"]))
    assert [row["less"] for row in alone] == [None, None]


def test_order_of_runs_and_a_run_named_twice_change_nothing(six: list[RunHistory]) -> None:
    assert rows(compare_runs(six[::-1])) == rows(compare_runs(six)) == rows(compare_runs([*six, six[0]]))


def test_memory_is_the_largest_over_seeds(six: list[RunHistory]) -> None:
    group = next(g for g in compare_runs(six).groups if g.strategy == "layerwise")
    assert [item.stage for item in stage_memory(group)] == [1, 2]
    for item in stage_memory(group):
        assert item.measured == max(m.measured or 0 for t in group.runs for m in t.memory if m.stage == item.stage)
        assert item.predicted is not None and item.measured == pytest.approx(item.predicted, rel=0.2)


def test_a_budget_buys_the_rounds_that_it_pays_for(six: list[RunHistory]) -> None:
    found = compare_runs(six)
    whole = found.groups[0]
    second = whole.means[1].spent("bytes")
    exact, short = Budget("bytes", second), Budget("bytes", second - 1)
    assert [rounds_within(whole.runs[0], budget) for budget in (exact, short)] == [2, 1]
    reach = reaches(found, exact)[0]
    assert (reach.rounds, reach.next_spent) == (2, whole.means[2].spent("bytes"))
    assert reach.best is not None
    tops = [max(p.quality.mean for p in t.points[:2] if p.quality is not None) for t in whole.runs]
    assert reach.best.mean == statistics.fmean(tops)
    assert "2 of 4 rounds fit; round 3 needs" in reach.verdict
    nothing = reaches(found, Budget("bytes", 10))
    assert {item.rounds for item in nothing} == {0} and {item.best for item in nothing} == {None}
    assert all(item.verdict.startswith("does not fit: its first round needs") for item in nothing)
    all_of_it = reaches(found, Budget("bytes", 1e12))
    assert all(item.verdict.startswith("fits entirely") and item.rounds == 4 for item in all_of_it)
    assert budget_rows(nothing)[0]["crossed_in_round"] == 1 and budget_rows(all_of_it)[0]["fits"]


def test_memory_that_end_to_end_needs_is_not_needed_by_layerwise(six: list[RunHistory]) -> None:
    found = compare_runs(six)
    layerwise = next(g for g in found.groups if g.strategy == "layerwise")
    histories = {r.group.strategy: r for r in reaches(found, Budget("memory", layerwise.last.peak_bytes))}
    assert histories["layerwise"].next_spent is None and histories["end_to_end"].rounds == 0
    assert 0 < histories["progressive"].rounds < 4  # its later stages grow


def test_a_loss_is_better_when_small(six: list[RunHistory]) -> None:
    found = compare_runs(six, metric="test/loss")
    assert found.lower_is_better
    reach = reaches(found, Budget("bytes", 1e12))[0]
    lows = [min(p.quality.mean for p in t.points if p.quality is not None) for t in found.groups[0].runs]
    assert reach.best is not None and reach.best.mean == statistics.fmean(lows)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("bytes=200MB", Budget("bytes", 200_000_000)),
        ("memory=1GiB", Budget("memory", 2**30)),
        ("flops=3T", Budget("flops", 3e12)),
        ("flops=2.5e12", Budget("flops", 2.5e12)),
        ("flops=10 GFLOP", Budget("flops", 1e10)),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["bytes", "bytes=", "bytes=-3", "flops=much", "flops=0", "time=3h", "memory=8 apples"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_budget(text)


def test_runs_that_differ_in_data_or_model_are_refused(make_histories: Make) -> None:
    one = make_histories("layerwise:0")[0]
    for other, named in (
        ("layerwise:0 data.shapes.test=6", "num_test"),
        ("layerwise:0 model.projection.hidden=8", "projection.hidden"),
    ):
        histories = [one, make_histories(other)[0]]
        with pytest.raises(SpecError, match=rf"{named} is .* and .*--force"):
            compare_runs(histories)
        forced = compare_runs(histories, force=True)
        assert len(forced.groups) == 2 and named in " ".join(forced.notes)
        assert len({group.label for group in forced.groups}) == 2
    assert differences([one[0], one[0]]) == []


def test_variants_of_one_strategy_are_named_after_what_differs(make_histories: Make) -> None:
    found = compare_runs(make_histories("layerwise:0", "layerwise:0 training.local_epochs=2", "layerwise:1"))
    assert [group.label for group in found.groups] == ["layerwise, local_epochs 1", "layerwise, local_epochs 2"]
    assert [group.seeds for group in found.groups] == [(0, 1), (0,)]
    assert any("training.local_epochs" in note for note in found.notes)


def test_a_run_stored_before_a_key_is_of_the_group_of_runs_that_have_its_default(six: list[RunHistory]) -> None:
    run, stages, rounds = six[0]
    federation = {key: value for key, value in run.spec["federation"].items() if key not in ("groups", "sampling")}
    older = run.changed(run_id="older", spec={**run.spec, "federation": federation})
    assert work_of(older) == work_of(run) and differences([older, run]) == []
    assert len(compare_runs([six[0], (older, stages, rounds)], metric=METRIC).groups) == 1


def test_other_cuts_of_one_model_can_be_compared(make_histories: Make) -> None:
    whole = " ".join(["layerwise:0", *ONE_STAGE])
    assert len(compare_runs(make_histories("layerwise:0", whole)).groups) == 2


def test_metrics_that_no_run_has_are_named_with_those_it_has(six: list[RunHistory]) -> None:
    with pytest.raises(SpecError, match=r"no metric `test/nothing` -> known: .*test/t2i/R@1"):
        compare_runs(six, metric="test/nothing")
    run, stages, rounds = six[0]
    bare = [r.changed(metrics={"train/loss": r.metrics["train/loss"]}) for r in rounds]
    with pytest.raises(SpecError, match="was never evaluated"):
        compare_runs([(run, stages, bare)])
    assert compare_runs([(run, stages, bare)], metric="train/loss").groups[0].label == "layerwise"
    with pytest.raises(SpecError, match="has no committed round"):
        compare_runs([(run, [], [])])
    with pytest.raises(SpecError, match="no run to compare"):
        compare_runs([])


def test_an_unfinished_run_and_rounds_without_evaluation(six: list[RunHistory], make_histories: Make) -> None:
    run, stages, rounds = six[0]
    found = compare_runs([(run, stages[:1], rounds[:3]), *six[1:3]])
    assert any("is not finished: 3 rounds" in note for note in found.notes)
    assert any("numbers of rounds differ" in note for note in found.notes)
    sparse = compare_runs(make_histories("end_to_end:0 evaluation.every=3"))
    assert [mean.quality is None for mean in sparse.groups[0].means] == [True, True, False, False]


def test_mistyped_metrics_are_known_before_training() -> None:
    spec = tiny_spec("nowhere")
    for metric in ("test/t2i/R@1", "test/i2t/R@10", "test/loss", "train/loss", "test/zero_shot/accuracy"):
        assert plausible(metric, spec)
    for metric in ("test/t2i/R@2", "test/accuracy", "t2i", "test/a2i/R@1", "federated/t2i/R@1"):
        assert not plausible(metric, spec)


def test_texts() -> None:
    assert quality_text(METRIC, spread([0.2, 0.25])) == "22.5 ± 3.5 %"
    assert quality_text(METRIC, None) == "–" and quality_text("test/loss", spread([1.0])) == "1.00"
    assert difference_text(METRIC, -0.0213) == "−2.1 points"
    assert difference_text("test/loss", 0.25) == "+0.25"


@pytest.mark.parametrize("lower", [False, True])
def test_the_best_round_is_chosen_by_validation_where_all_rounds_have_it(six: list[RunHistory], lower: bool) -> None:
    curve = compare_runs(six).groups[0].runs[0]
    pick = min if lower else max
    tested = [point.quality.mean for point in curve.points if point.quality is not None]
    assert curve.best(99, lower_is_better=lower) == pick(tested)
    marked = [replace(point, validation=1.0 if n == 1 else 2.0) for n, point in enumerate(curve.points)]
    validated = replace(curve, points=tuple(marked))
    assert validated.best(99, lower_is_better=True) == tested[1]
    assert validated.best(99, lower_is_better=False) == tested[0], "the first of equal ones"
    partly = replace(curve, points=(replace(marked[0], validation=None), *marked[1:]))
    assert partly.best(99, lower_is_better=lower) == pick(tested)
    assert curve.best(0, lower_is_better=lower) is None
