"""Compares runs by their records: the quality of each against bytes, FLOPs and memory per client."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

from lwfed.cost.schedule import samples_per_round
from lwfed.formats import HEADLINES, finite
from lwfed.plan.stages import StagePlan
from lwfed.report.compare.records import Comparison, Group, Memory, Point, RunCurve, Spread, spread
from lwfed.report.compare.settings import differences, labels_of, setting_notes, work_of
from lwfed.run import runs
from lwfed.run.measured import clients_in, frozen_bytes, in_every_round
from lwfed.spec.run import STRATEGIES, RunSpec
from lwfed.types.errors import SpecError
from lwfed.types.records import RunRecord, StageRecord
from lwfed.types.round_records import ClientRecord, RoundRecord

AVERAGED = ("moved_bytes", "frozen_bytes", "flops", "wall_s")
"""Sums of a point of which a group has the mean over its seeds."""

RunHistory = tuple[RunRecord, Sequence[StageRecord], Sequence[RoundRecord]]
"""A RunRecord, its StageRecords and its RoundRecords."""


def compare_runs(histories: Sequence[RunHistory], *, metric: str | None = None, force: bool = False) -> Comparison:
    """Groups runs over their seeds and compares the groups.

    Args:
        histories: The runs' records.
        metric: The metric to compare; None: the objective's headline.
        force: Also compare runs that differ in data or model.

    Returns:
        The comparison.

    Raises:
        SpecError: There is no run, a run has no such metric or was never evaluated, or runs differ in data or model.
    """
    if not histories:
        raise SpecError("there is no run to compare", remedy="name a spec, or runs with --runs")
    chosen = metric or _headline(histories)
    differing = differences([run for run, _, _ in histories])
    if differing and not force:
        raise SpecError(
            f"the runs cannot be compared: {'; '.join(differing)}", remedy="use --force to compare them anyway"
        )
    grouped: dict[str, dict[int, RunCurve]] = {}
    works: dict[str, dict[str, str]] = {}
    notes = [f"The runs are not comparable in all respects: {text}." for text in differing]
    for run, stages, rounds in histories:
        curve = curve_of(run, stages=stages, rounds=rounds, metric=chosen)
        work = work_of(run)
        key = f"{run.strategy}|{sorted(work.items())}"
        works[key] = work
        first = grouped.setdefault(key, {}).setdefault(curve.seed, curve)
        if curve.run_id != first.run_id:
            notes.append(f"Run {curve.run_id} does the same work as {first.run_id} and is left out.")
        elif not curve.complete:
            notes.append(f"Run {curve.run_id} is not finished: {len(curve.points)} rounds are committed.")
        elif any(stage.result_round not in (None, stage.rounds) for stage in stages):
            notes.append(f"Stages of run {curve.run_id} end as earlier rounds by their gate; curves show every round.")
    if len({run.code_version for run, _, _ in histories}) > 1:
        notes.append("The runs were made by different versions of the code or of its libraries.")
    labels = labels_of({key: (next(iter(group.values())).strategy, works[key]) for key, group in grouped.items()})
    groups = [_group(labels[key], [group[seed] for seed in sorted(group)]) for key, group in grouped.items()]
    groups.sort(key=_place)
    if len({len(group.means) for group in groups}) > 1:
        notes.append("The numbers of rounds differ; ratios are those of whole runs.")
    notes += setting_notes(works)
    return Comparison(chosen, tuple(groups), tuple(dict.fromkeys(notes)))


def _place(group: Group) -> int:
    """Returns a group's place: end_to_end, the reference, then the strategies as a spec lists them, then others."""
    name = group.strategy.partition(" ")[0]
    return -1 if name == "end_to_end" else STRATEGIES.index(name) if name in STRATEGIES else len(STRATEGIES)


def plausible(metric: str, spec: RunSpec) -> bool:
    """Whether runs of a spec can have a metric, so that a mistyped one fails before training."""
    side, _, rest = metric.partition("/")
    if side == "federated" and not spec.evaluation.federated_every:
        return False
    return metric == "train/loss" or (side in ("test", "federated") and spec.model.has_metric(rest))


def curve_of(run: RunRecord, *, stages: Sequence[StageRecord], rounds: Sequence[RoundRecord], metric: str) -> RunCurve:
    """Returns a run's curve over its rounds.

    Raises:
        SpecError: The run has no round, or never has the metric.
    """
    if not rounds:
        raise SpecError(f"run {run.run_id} has no committed round", remedy="finish it with `lwfed run`")
    plans = {plan.stage: plan for plan in runs.plans_of(run)}
    predicted = {cost["stage"]: cost for cost in run.predicted}
    points: list[Point] = []
    memory: list[Memory] = []
    moved = frozen = flops = peak = wall = 0.0
    earlier: set[str] = set()
    for stage, found in groupby(rounds, key=attrgetter("stage")):
        records, plan, cost = list(found), plans[stage], predicted.get(stage) or {}
        clients = [client for record in records for client in record.clients.values()]
        per_sample = _flops_per_sample(clients, cost)
        peaks = [client.peak_tensor_bytes for client in clients if client.peak_tensor_bytes is not None]
        memory.append(Memory(stage, cost.get("peak_bytes"), max(peaks, default=None)))
        peak = max(peak, memory[-1].measured or memory[-1].predicted or 0.0)
        fetched = in_every_round(records, frozen_bytes, earlier=earlier)
        filled = _fills(records, plan=plan, cost=cost, earlier=earlier)
        earlier = clients_in(records)
        for n, record in enumerate(records):
            part = record.clients.values()
            samples = statistics.fmean(samples_per_round(plan, num_examples=client.num_examples) for client in part)
            moved += statistics.fmean(client.bytes_up + client.bytes_down for client in part)
            frozen += fetched[n]
            flops += per_sample * samples + filled[n]
            wall += record.wall_s.get("round", 0.0)
            value, validation = record.metrics.get(metric), record.metrics.get(_on_validation(metric))
            points.append(
                Point(
                    round=record.global_round,
                    stage=stage,
                    quality=Spread(float(value)) if finite(value) else None,
                    moved_bytes=moved,
                    frozen_bytes=frozen,
                    flops=flops,
                    peak_bytes=peak,
                    wall_s=wall,
                    validation=validation if finite(validation) else None,
                )
            )
    if all(point.quality is None for point in points):
        known = sorted({name for record in rounds for name in record.metrics})
        if metric.startswith("test/") and not any(name.startswith("test/") for name in known):
            names = ", ".join(known) or "none"
            raise SpecError(f"run {run.run_id} was never evaluated", remedy=f"its metrics are: {names}")
        raise SpecError(f"run {run.run_id} has no metric `{metric}`", remedy=f"known: {', '.join(known)}")
    return RunCurve(
        run_id=run.run_id,
        strategy=run.strategy,
        seed=int(run.spec["seed"]),
        digest=stages[-1].digest if len(stages) == len(plans) else rounds[-1].digest,
        complete=len(stages) == len(plans),
        points=tuple(points),
        memory=tuple(memory),
    )


def _headline(histories: Sequence[RunHistory]) -> str:
    """Returns the first headline metric that every run has."""
    of_runs = [{name for record in rounds for name in record.metrics} for _, _, rounds in histories]
    shared = set.intersection(*of_runs)
    for name in HEADLINES:
        if name in shared:
            return name
    for (run, _, rounds), names in zip(histories, of_runs, strict=True):
        if rounds and not names & set(HEADLINES):
            raise SpecError(f"run {run.run_id} was never evaluated", remedy="name a training metric with --metric")
    return HEADLINES[0]  # no run has rounds, or they share no metric: the caller's error says which


def _fills(
    records: Sequence[RoundRecord], *, plan: StagePlan, cost: Mapping[str, Any], earlier: Collection[str]
) -> list[float]:
    """Returns the FLOPs per round that a client in every round of a stage spends on filling its cache.

    They follow from what clients computed. But clients that fill at once for the few rounds that they take part in
    compute less than one that is in all of them; then it is the ledger's prediction.
    """
    spent = in_every_round(records, partial(_filling, cost=cost), earlier=earlier)
    if plan.cohort.fraction_fit < 1 and plan.knows_rounds and not any(spent[1:]):
        spent[0] = in_every_round(records, partial(_predicted_filling, cost=cost), earlier=earlier)[0]
    return spent


def _predicted_filling(client: ClientRecord, *, cost: Mapping[str, Any]) -> float:
    """Returns the FLOPs of a stage's fill, if a client filled its cache in this round."""
    return float(client.num_examples * (cost.get("fill_flops") or 0)) if "filled" in client.prefix.values() else 0.0


def _filling(client: ClientRecord, *, cost: Mapping[str, Any]) -> float:
    """Returns the FLOPs, by the ledger, that a client spent in this round on filling its cache of frozen outputs."""
    each = cost.get("fill_from")
    if each is None:  # a run of an older version, which computed all inputs at once
        return _predicted_filling(client, cost=cost)
    return float(
        sum(
            count * each.get(modality, {}).get(done, 0)
            for modality, counts in client.prefix_filled.items()
            for done, count in counts.items()
        )
    )


def _flops_per_sample(clients: Sequence[ClientRecord], cost: Mapping[str, Any]) -> float:
    """Returns the FLOPs per training sample, counted if possible, else predicted."""
    counted = [client.step_flops for client in clients if client.step_flops is not None]
    if counted:
        return statistics.fmean((step.forward + step.backward) / step.batch for step in counted)
    return float(cost.get("forward_flops") or 0) + float(cost.get("backward_flops") or 0)


def _group(label: str, curves: Sequence[RunCurve]) -> Group:
    means = []
    for points in zip(*(curve.points for curve in curves), strict=False):  # an unfinished seed ends the mean
        known = [point.quality.mean for point in points if point.quality is not None]
        means.append(
            Point(
                round=points[0].round,
                stage=points[0].stage,
                quality=spread(known) if len(known) == len(points) else None,
                peak_bytes=max(point.peak_bytes for point in points),
                **{name: statistics.fmean(getattr(point, name) for point in points) for name in AVERAGED},
            )
        )
    return Group(label, curves[0].strategy, tuple(curves), tuple(means))


def _on_validation(metric: str) -> str:
    """Returns the name of a test metric on validation data."""
    return f"validation/{metric.removeprefix('test/')}"
