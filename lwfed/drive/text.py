"""Numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lwfed.report.formats import HEADLINES as HEADLINES


def size(count: float) -> str:
    """Writes bytes: `190.5 MB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def amount(count: float) -> str:
    """Writes a count: `47.6 M`."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(count) < 999.5 or unit == " P":
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def flops(count: float) -> str:
    """Writes FLOPs: `3.06 GFLOP`."""
    return f"{count / 1e9:.2f} GFLOP" if count >= 1e9 else f"{count / 1e6:.1f} MFLOP"


def times(factor: float) -> str:
    """Writes a factor: `2.34x`."""
    return f"{factor:.2f}x" if factor < 100 else f"{factor:.0f}x"


def duration(seconds: float) -> str:
    """Writes a time: `42 s`, `3 min 5 s`, `2 h 3 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


TITLES = {"train/loss": "train loss", "test/loss": "test loss"}


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts metrics as people count: R@5 before R@10."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def title(metric: str) -> str:
    """Names a metric in a table's head: `t2i R@1`."""
    return TITLES.get(metric) or metric.removeprefix("test/").replace("/", " ")


def score(metric: str, value: float | None) -> str:
    """Writes a metric: losses with three digits, the rest in per cent."""
    if value is None:
        return "-"
    return f"{value:.3f}" if metric.endswith("loss") else f"{100 * value:.1f} %"
