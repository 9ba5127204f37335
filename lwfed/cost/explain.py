"""The ledger as a table: plain rows for the CLI and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwfed.cost.fit import fit, link_seconds
from lwfed.cost.schedule import factor, schedule_costs
from lwfed.cost.stage_cost import StageCost
from lwfed.plan.groups import count_kinds, trained_text
from lwfed.plan.stages import StagePlan


def rows(
    stages: Sequence[StagePlan],
    *,
    costs: Sequence[StageCost],
    end_to_end: StageCost,
    num_examples: int,
    device_bytes: int | None = None,
    disk_bytes: int | None = None,
    link_mbps: float | None = None,
) -> list[dict[str, Any]]:
    """Returns a row per stage, a row for end-to-end training, and a total.

    Args:
        stages: The stages.
        costs: Their costs.
        end_to_end: The cost of end-to-end training.
        num_examples: Number of a client's examples, for the total.
        device_bytes: A device's memory; None leaves the verdict out.
        disk_bytes: A client's disk space for outputs of frozen blocks; None leaves that verdict out.
        link_mbps: A client's link in megabits per second; None leaves times out.

    Returns:
        Rows with the keys `stage` (a number, `end_to_end` or `total`), `rounds`, `present_params`, `trained_params`,
        `exchanged_bytes` (up, per round; in the total over all rounds), `download_bytes` (down, likewise, without
        frozen blocks), `frozen_bytes_down`, `exchange_factor` (end to end / this stage, up), `forward_flops`,
        `backward_flops` (per sample; in the total `flops` of a client's training), `flops_factor`,
        `activations_bytes`, `peak_bytes`, `peak_factor`, and with a device `fits`, `largest_batch`, `verdict`;
        for stages `fill_flops` and `cache_bytes` per client and `read_bytes` per step, with a disk `cache_fits`, with
        a link `link_s`, the seconds of a round's transfers.
    """
    own, whole = schedule_costs(stages, costs=costs, end_to_end=end_to_end, num_examples=num_examples)
    priced: list[tuple[int | str, int, StageCost]]
    priced = [(stage.stage, stage.rounds, cost) for stage, cost in zip(stages, costs, strict=True)]
    table = [
        _row(
            cost,
            name=name,
            rounds=rounds,
            end_to_end=end_to_end,
            num_examples=num_examples,
            device_bytes=device_bytes,
            disk_bytes=disk_bytes,
            link_mbps=link_mbps,
        )
        for name, rounds, cost in [*priced, ("end_to_end", own.rounds, end_to_end)]
    ]
    table.append(
        {
            "stage": "total",
            "rounds": own.rounds,
            "exchanged_bytes": own.bytes_up,
            "download_bytes": own.bytes_down,
            "frozen_bytes_down": own.bytes_down_frozen,
            "exchange_factor": factor(whole.bytes_up, own.bytes_up),
            "flops": own.flops,
            "flops_factor": factor(whole.flops, own.flops),
            "peak_bytes": own.peak_bytes,
            "peak_factor": factor(whole.peak_bytes, own.peak_bytes),
        }
    )
    return table


def kind_rows(stages: Sequence[StagePlan], kinds: Sequence[Mapping[str, StageCost]]) -> list[dict[str, Any]]:
    """Returns a row per stage and kind of client, where clients are not alike.

    Args:
        stages: The stages.
        kinds: The costs of each stage's kinds of clients; see `lwfed.cost.groups.group_costs`.

    Returns:
        Rows with `stage`, `kind`, `clients` (their number; None if unknown), `trains` (in words), `exchanged_bytes`,
        `download_bytes`, `flops` (per sample) and `peak_bytes`; `left_out` is set, and the costs are missing, for
        clients that leave the stage out.
    """
    rows: list[dict[str, Any]] = []
    for stage, costs in zip(stages, kinds, strict=True):
        works = stage.kinds()
        number = count_kinds(stage) if works else {}
        rows += [
            {
                "stage": stage.stage,
                "kind": kind,
                "clients": number[kind],
                "trains": trained_text(works[kind]),
                "exchanged_bytes": cost.exchanged_bytes,
                "download_bytes": cost.download_bytes,
                "flops": cost.flops,
                "peak_bytes": cost.peak_bytes,
            }
            for kind, cost in costs.items()
        ]
        if stage.cohort.absent:
            absent = len(stage.cohort.absent)
            rows.append({"stage": stage.stage, "kind": "left out", "clients": absent, "left_out": True})
    return rows


def _row(
    cost: StageCost,
    *,
    name: int | str,
    rounds: int,
    end_to_end: StageCost,
    num_examples: int,
    device_bytes: int | None,
    disk_bytes: int | None,
    link_mbps: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": name,
        "rounds": rounds,
        "present_params": cost.present_params,
        "trained_params": cost.trained_params,
        "exchanged_bytes": cost.exchanged_bytes,
        "download_bytes": cost.download_bytes,
        "frozen_bytes_down": cost.newly_frozen_bytes,
        "exchange_factor": factor(end_to_end.exchanged_bytes, cost.exchanged_bytes),
        "forward_flops": cost.forward_flops,
        "backward_flops": cost.backward_flops,
        "flops_factor": factor(end_to_end.flops, cost.flops),
        "activations_bytes": cost.activations_bytes,
        "peak_bytes": cost.peak_bytes,
        "peak_factor": factor(end_to_end.peak_bytes, cost.peak_bytes),
    }
    if device_bytes is not None:
        verdict = fit(cost, device_bytes=device_bytes)
        row |= {"fits": verdict.fits, "largest_batch": verdict.largest_batch, "verdict": verdict.verdict}
    cache = num_examples * cost.cache_bytes
    row |= {"fill_flops": num_examples * cost.fill_flops, "cache_bytes": cache}
    row["read_bytes"] = cost.read_bytes * min(cost.batch_size, num_examples)
    if disk_bytes is not None:
        row["cache_fits"] = cache <= disk_bytes
    if link_mbps:
        row["link_s"] = link_seconds(cost, link_mbps=link_mbps)
    return row


def parts(cost: StageCost) -> list[dict[str, Any]]:
    """Explains one stage: a row per part of the model (see `stage_cost.PARTS`) with its shares.

    Returns:
        Rows with `part`, `params`, `exchanged_params`, `exchange_share`, `forward_flops`, `backward_flops`,
        `flops_share`, `saved_bytes` (per sample), `activations_share`; shares in [0, 1].
    """
    return [
        {
            "part": part,
            **bill,
            "exchange_share": bill["exchanged_params"] / max(cost.exchanged_params, 1),
            "flops_share": (bill["forward_flops"] + bill["backward_flops"]) / max(cost.flops, 1),
            "activations_share": bill["saved_bytes"] / max(cost.sample_bytes, 1),
        }
        for part, bill in cost.by_part().items()
    ]
