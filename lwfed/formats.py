"""Formats numbers and metrics for readers: three significant digits, and SI prefixes (powers of 1000) for units.

Every function accepts any value of a record; a missing or non-finite value becomes `–`. A metric's name is
`SIDE/TASK/MEASURE`, such as `test/t2i/R@1`; a side is `train`, `test` and `validation` (on the server), `federated`
(the clients' held-out shares) or `fitted` (a sample of what they train on, evaluated like these).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any, TypeGuard

from lwfed.types.modalities import MODALITIES, retrieval_task

MISSING = "–"
PREFIXES = ("", "k", "M", "G", "T", "P")
TASKS = {retrieval_task(*pair): pair for pair in permutations(MODALITIES, 2)}
"""Name of a retrieval task -> the modality of its queries, and that of what is found."""
_FIRST = ("t2i", "i2t", "i2a", "a2i")
HEADLINES = (
    *(f"test/{task}/R@1" for task in dict.fromkeys((*_FIRST, *TASKS))), "test/accuracy", "test/f1", "test/loss",
)  # fmt: skip
"""The most important metrics, of which a run has some."""
_TITLES = {"loss": "test loss", "movement/effective": "effective movement"}
"""Titles that do not follow from a metric's name."""


def finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def bytes_text(value: Any) -> str:
    """Returns bytes as `999 B`, `1.00 kB`, `190 MB`, `18.6 GB`."""
    return _with_prefix(value, unit="B")


def flops_text(value: Any) -> str:
    """Returns FLOPs as `913 MFLOP`, `1.03 GFLOP`; one multiply-add is 2 FLOPs."""
    return _with_prefix(value, unit="FLOP")


def amount_text(value: Any) -> str:
    """Returns a large count, such as of parameters, as `47.6 M`."""
    return _with_prefix(value, unit="").strip()


def count_text(value: Any) -> str:
    """Returns a count in full: `1,234,567`."""
    return f"{int(value):,}" if finite(value) else MISSING


def number_text(value: Any) -> str:
    """Returns a number without a unit: `0.0123`, `1.00`, `123`, `12,346`; tiny ones as `1.2e-05`."""
    if not finite(value):
        return MISSING
    size = abs(value)
    if size >= 999.5 or size == 0:
        return f"{value:,.0f}"
    return _digits(value) if size >= 0.001 else f"{value:.1e}"


def rates_text(rates: Mapping[str, Sequence[float | None]]) -> str:
    """Returns learning rates by module group and stage: `image 0.0005 0.000375; text 0.0001`."""
    groups: dict[str, list[str]] = {}
    for group, by_stage in rates.items():
        texts = [MISSING if rate is None else f"{rate:.4g}" for rate in by_stage]
        groups.setdefault(texts[0] if len(set(texts)) == 1 else " ".join(texts), []).append(group)
    return "; ".join(f"{', '.join(names)} {text}" for text, names in groups.items())


def percent_text(value: Any) -> str:
    """Returns a share in per cent: 0.1234 as `12.3 %`."""
    return f"{100 * value:.1f} %" if finite(value) else MISSING


def factor_text(value: Any) -> str:
    """Returns a ratio: `2.34x`, `0.50x`, `150x`."""
    return MISSING if not finite(value) else f"{value:.2f}x" if abs(value) < 99.995 else f"{value:,.0f}x"


def left_out_text(counts: Mapping[str, int]) -> str:
    """Returns what data leave out, as `left out: 2 blank captions, 1 hidden files`; empty if it is nothing."""
    return "left out: " + ", ".join(f"{count} {what}" for what, count in counts.items()) if counts else ""


def lacks_text(lacks: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> list[str]:
    """Returns a line per modality that examples lack: `audio: 312 of 785 examples lack it, all of client-003's`.

    Args:
        lacks: Client -> modality -> number of its examples that lack it.
        sizes: Client -> number of its examples.
    """
    lines, total = [], sum(sizes.values())
    for modality in sorted({modality for counts in lacks.values() for modality in counts}):
        counts = {client: its[modality] for client, its in lacks.items() if modality in its}
        whole = [f"{client}'s" for client, count in sorted(counts.items()) if count == sizes[client]]
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        those = f", all of {', '.join(whole[:3])}{more}" if whole else ""
        lines.append(f"{modality}: {sum(counts.values()):,} of {total:,} examples lack it{those}")
    return lines


def seconds_text(value: Any) -> str:
    """Returns a time in at most two units: `9.9 s`, `42 s`, `3 min 5 s`, `2 h 3 min`."""
    if not finite(value):
        return MISSING
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def trimmed(text: str) -> str:
    """Returns a number's text without trailing zeros, for axis labels: `2.00 MB` as `2 MB`."""
    number, space, unit = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number and "e" not in number else number) + space + unit


def is_share(metric: str) -> bool:
    """Whether a metric is a share between 0 and 1, to be shown in per cent."""
    return not metric.endswith(("loss", "norm", "files", "weight"))


def metric_title(metric: str, *, short: bool = False) -> str:
    """Returns a metric's title: `test/t2i/R@1` as `text to image R@1`, short `t2i R@1`."""
    rest = metric.removeprefix("test/")
    task, _, recall = rest.partition("/")
    if not short and task in TASKS:
        return f"{' to '.join(TASKS[task])} {recall}"
    return _TITLES.get(rest, rest.replace("/", " "))


def score_text(metric: str, value: float | None) -> str:
    """Returns a metric's value: losses with three decimals, shares in per cent."""
    if value is None:
        return MISSING
    return percent_text(value) if is_share(metric) else f"{value:.3f}"


def natural_order(names: Iterable[str]) -> list[str]:
    """Returns names sorted with numbers in numeric order: R@5 before R@10."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def metric_text(metric: str, value: float | None) -> str:
    """Returns a metric with its value: `t2i R@1 36.9 %`."""
    return f"{metric_title(metric, short=True)} {score_text(metric, value)}"


def _with_prefix(value: Any, *, unit: str) -> str:
    if not finite(value):
        return MISSING
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    number = f"{value:,.0f}" if power == 0 or abs(value) >= 999.5 else _digits(value)
    return f"{number} {PREFIXES[power]}{unit}"


def _digits(value: float) -> str:
    """Returns three significant digits, including trailing zeros."""
    return f"{value:#.3g}".rstrip(".")
