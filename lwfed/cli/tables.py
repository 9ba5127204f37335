"""Tables of stages, rounds and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from lwfed.drive.console import make_table
from lwfed.formats import (
    HEADLINES,
    amount_text,
    bytes_text,
    factor_text,
    flops_text,
    metric_title,
    score_text,
    seconds_text,
)
from lwfed.plan.gates import EFFECTIVE_MOVEMENT
from lwfed.report.clients import ClientRow
from lwfed.spec.federation import FederationSpec
from lwfed.types.records import StageRecord, StageSummary
from lwfed.types.round_records import RoundRecord

Record = Mapping[str, Any]
MOST_CLIENTS = 40
"""Most clients in a table."""
MOST_NAMED = 12
"""Most clients named in a sentence."""


def taking_part(federation: FederationSpec) -> str:
    """Returns how many clients take part, as `7 of 10 clients take part`; empty if all do or their number is open."""
    if federation.num_clients is None or federation.eligible == federation.num_clients:
        return ""
    return f"{federation.eligible} of {federation.num_clients} clients take part"


def stages_table(stages: Sequence[StageRecord | StageSummary], *, end_to_end: Record) -> Table:
    """Returns a table of each stage's scores and costs, measured and predicted.

    Args:
        stages: The stages of a summary.
        end_to_end: The predicted cost of end-to-end training.
    """
    metrics = [name for name in HEADLINES if any(name in stage.metrics for stage in stages)][:2]
    scores = [metric_title(metric, short=True) for metric in metrics]
    heads = ("stage", "rounds", *scores, "up per round", "peak memory", "FLOP per sample", "time")
    table = make_table("Stages; in brackets, the predictions", right=heads, no_wrap=True)
    for stage in stages:
        measured, predicted = stage.ledger.measured, stage.ledger.predicted or {}
        table.add_row(
            str(stage.stage),
            _rounds(stage),
            *(score_text(metric, stage.metrics.get(metric)) for metric in metrics),
            _with_prediction(measured.get("bytes_up"), predicted.get("exchanged_bytes"), bytes_text),
            _with_prediction(measured.get("peak_tensor_bytes"), predicted.get("peak_bytes"), bytes_text),
            _with_prediction(_flops(measured), _flops(predicted), flops_text),
            "reused" if stage.reused else seconds_text(stage.wall_s),
        )
    table.add_section()
    table.add_row(
        "end_to_end",
        "",
        *("" for _ in metrics),
        _with_prediction(None, end_to_end["exchanged_bytes"], bytes_text),
        _with_prediction(None, end_to_end["peak_bytes"], bytes_text),
        _with_prediction(None, _flops(end_to_end), flops_text),
        "",
        style="dim",
    )
    return table


def _rounds(stage: StageRecord | StageSummary) -> str:
    """Returns a stage's number of rounds, and the round that is its result if that is not the last."""
    early = stage.result_round not in (None, stage.rounds)
    return f"{stage.rounds}, result {stage.result_round}" if early else str(stage.rounds)


def _with_prediction(measured: float | None, predicted: float | None, write: Callable[[float], str]) -> str:
    expected = f"({write(predicted)})" if predicted else ""
    return f"{write(measured)} {expected}" if measured else expected


def _flops(ledger: Record) -> float | None:
    return ledger["forward_flops"] + ledger["backward_flops"] if "forward_flops" in ledger else None


def plan_table(rows: Sequence[Record]) -> Table:
    """Returns a table of predicted costs: a row per stage, one for end_to_end, and the total over the schedule."""
    columns = [(head, write) for head, key, write in PLAN_COLUMNS if key is None or any(row.get(key) for row in rows)]
    table = make_table("Cost per client; in brackets, the reduction against end to end", right=[h for h, _ in columns])
    for row in rows:
        if row["stage"] in ("end_to_end", "total"):
            table.add_section()
        table.add_row(*(write(row) for _, write in columns))
    return table


def _params(key: str) -> Callable[[Record], str]:
    return lambda row: amount_text(row[key]) if key in row else ""


def _exchange(row: Record) -> str:
    """Returns the exchanged bytes: one number if both directions are equal."""
    up, down = bytes_text(row["exchanged_bytes"]), bytes_text(row["download_bytes"])
    return f"{up if up == down else f'{up} up, {down} down'} ({factor_text(row['exchange_factor'])})"


def _computed(row: Record) -> str:
    return f"{flops_text(row['flops'] if 'flops' in row else _flops(row))} ({factor_text(row['flops_factor'])})"


def _disk(row: Record) -> str:
    if not row.get("cache_bytes"):
        return ""
    verdict = "" if "cache_fits" not in row else ", fits" if row["cache_fits"] else ", too large"
    return f"{bytes_text(row['cache_bytes'])} ({bytes_text(row['read_bytes'])}){verdict}"


def _verdict(row: Record) -> str:
    if "fits" not in row:
        return ""
    return f"{'yes' if row['fits'] else 'no'}, batch <= {row['largest_batch']}" if row["largest_batch"] else "no"


PLAN_COLUMNS: tuple[tuple[str, str | None, Callable[[Record], str]], ...] = (
    ("stage", None, lambda row: str(row["stage"])),
    ("rounds", None, lambda row: str(row["rounds"])),
    ("present", None, _params("present_params")),
    ("trained", None, _params("trained_params")),
    ("each way per round", None, _exchange),
    ("FLOP per sample", None, _computed),
    ("peak memory", None, lambda row: f"{bytes_text(row['peak_bytes'])} ({factor_text(row['peak_factor'])})"),
    ("disk (read per step)", "cache_bytes", _disk),
    ("on the link", "link_s", lambda row: seconds_text(row["link_s"]) if "link_s" in row else ""),
    ("this device", "verdict", _verdict),
)
"""Head, the entry of some row that the column needs (None: always there), and a row's cell."""


def kinds_table(rows: Sequence[Record]) -> Table:
    """Returns a table of predicted costs for each kind of client; see `lwfed.cost.explain.kind_rows`."""
    heads = ("clients", "up per round", "down per round", "FLOP per sample", "peak memory")
    table = make_table("Kinds of clients", left=("stage", "kind"), right=heads)
    table.add_column("trains and sends", overflow="fold")
    stage = None
    for row in rows:
        if row["stage"] != stage and stage is not None:
            table.add_section()
        costs = [
            "" if row.get("left_out") else write(row[key])
            for key, write in (
                ("exchanged_bytes", bytes_text),
                ("download_bytes", bytes_text),
                ("flops", flops_text),
                ("peak_bytes", bytes_text),
            )
        ]
        name = str(row["stage"]) if row["stage"] != stage else ""
        trains = row.get("trains", "nothing: it does not fit them")
        table.add_row(name, row["kind"], str(row["clients"]), *costs, trains)
        stage = row["stage"]
    return table


def clients_table(rows: Sequence[ClientRow], *, most: int = MOST_CLIENTS) -> Table:
    """Returns a table of a run's clients: what each trained, sent and keeps; the first of them if they are many."""
    shown = rows[:most]
    title = "Clients" if len(shown) == len(rows) else f"Clients, the first {len(shown)} of {len(rows)}"
    several = any(row.kind != rows[0].kind for row in rows)
    table = make_table(title, left=("client", *(("kind",) if several else ())), right=("examples", "rounds", "sent"))
    for head in (*(("trains",) if several else ()), "keeps"):
        table.add_column(head, overflow="fold")
    for row in shown:
        took_part = f"{row.counted}/{row.asked}" if row.asked else "never asked"
        cells = [row.examples_text, took_part, bytes_text(row.bytes_up), *((row.trains,) if several else ()), row.keeps]
        kind = (row.kind,) if several else ()
        table.add_row(row.client, *kind, *cells, style=None if row.counted else "dim")
    return table


def absent_text(rows: Sequence[ClientRow]) -> str:
    """Names the clients that never took part; empty if all did."""
    names = [row.client for row in rows if not row.counted]
    if not names:
        return ""
    others = f" and {len(names) - MOST_NAMED} others" if len(names) > MOST_NAMED else ""
    return f"{len(names)} of {len(rows)} clients never took part: {', '.join(names[:MOST_NAMED])}{others}"


def levers_table(savings: Sequence[Any]) -> Table:
    """Returns a table of each lever's savings, with one row for stages that use it in the same way."""
    heads = ("stages", "FLOPs", "peak memory", "moved per round", "disk space")
    table = make_table("Levers; what each saves while the others stay in use", left=("lever",), right=heads)
    table.columns[0].no_wrap = True
    alike: dict[tuple[str, str], list[Any]] = {}
    for saving in savings:
        alike.setdefault((saving.lever, saving.how), []).append(saving)
    for (lever, how), group in alike.items():
        table.add_row(
            f"{lever}: {how}",
            _numbers([saving.stage for saving in group]),
            _span([saving.flops for saving in group], factor_text, nothing=1.0),
            _span([saving.peak_bytes for saving in group], _signed),
            _span([saving.exchanged_bytes for saving in group], _signed),
            _span([saving.disk_bytes for saving in group], bytes_text),
        )
    return table


def _numbers(stages: Sequence[int]) -> str:
    whole = list(range(stages[0], stages[-1] + 1)) == list(stages)
    return f"{stages[0]}-{stages[-1]}" if whole and len(stages) > 1 else ", ".join(map(str, stages))


def _span(values: Sequence[float], write: Callable[[float], str], *, nothing: float = 0.0) -> str:
    """Returns one text if all values read the same, else the smallest and the largest."""
    if all(abs(value - nothing) < 5e-3 for value in values):
        return ""
    least, most = write(min(values)), write(max(values))
    return least if least == most else f"{least} to {most}"


def _signed(nbytes: float) -> str:
    return f"{bytes_text(abs(nbytes))} {'less' if nbytes > 0 else 'more'}" if nbytes else "none"


def rounds_table(rounds: Sequence[RoundRecord]) -> Table:
    """Returns a table with one row per round."""
    metrics = [name for name in HEADLINES if any(name in item.metrics for item in rounds)][:4]
    metrics += [name for name in (EFFECTIVE_MOVEMENT,) if any(name in item.metrics for item in rounds)]
    scores = [metric_title(metric, short=True) for metric in metrics]
    heads = ("stage", "round", "global", "clients", "failed", "train loss", *scores, "time")
    table = make_table("Rounds", right=heads)
    for item in rounds:
        table.add_row(
            str(item.stage),
            str(item.round),
            str(item.global_round),
            f"{len(item.clients)}/{len(item.cohort)}",
            ", ".join(sorted(item.failed)) or "-",
            score_text("train/loss", item.metrics.get("train/loss")),
            *(score_text(metric, item.metrics.get(metric)) for metric in metrics),
            seconds_text(item.wall_s["round"]),
        )
    return table
