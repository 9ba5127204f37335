"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

from lwfed.tracking.protocol import finite

NOTHING = "–"

HEADLINES = ("test/t2i/R@1", "test/i2t/R@1", "test/i2a/R@1", "test/a2i/R@1", "test/accuracy", "test/f1", "test/loss")
"""Metrics that are looked at first, those that a run has."""


MODALITIES = {"i": "image", "t": "text", "a": "audio"}


def metric_title(name: str, *, short: bool = False) -> str:
    """`test/t2i/R@1` -> `text to image R@1`, short `t2i R@1`; other names lose their `test/`."""
    rest = name.removeprefix("test/")
    pair, _, recall = rest.partition("/")
    if not short and len(pair) == 3 and pair[1] == "2" and pair[0] in MODALITIES and pair[2] in MODALITIES:
        return f"{MODALITIES[pair[0]]} to {MODALITIES[pair[2]]} {recall}"
    return rest.replace("/", " ") if rest != "loss" else "test loss"


def count_text(value: Any) -> str:
    """1234567 -> `1,234,567`."""
    return f"{int(value):,}" if finite(value) else NOTHING


def number_text(value: Any) -> str:
    """Three or four digits that matter."""
    if not finite(value):
        return NOTHING
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 0.001 or size == 0 else f"{value:.1e}"


def measure_text(value: Any) -> str:
    """Three digits, zeros at the end included: 1 -> `1.00`."""
    return f"{value:#.3g}".rstrip(".") if finite(value) and 0.001 <= abs(value) < 1000 else number_text(value)


def percent_text(value: Any) -> str:
    """0.1234 -> `12.3 %`, without needless zeros."""
    return f"{100 * value:.1f}".removesuffix(".0") + " %" if finite(value) else NOTHING


def memory_text(value: Any) -> str:
    """Bytes in KiB, MiB, GiB."""
    return _scaled(value, step=1024, units=("B", "KiB", "MiB", "GiB", "TiB"))


def traffic_text(value: Any) -> str:
    """Bytes in kB, MB, GB."""
    return _scaled(value, step=1000, units=("B", "kB", "MB", "GB", "TB"))


def flops_text(value: Any) -> str:
    """FLOPs in MFLOP, GFLOP ..."""
    return _scaled(value, step=1000, units=("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def size_text(value: Any) -> str:
    """Numbers of parameters in k, M."""
    return _scaled(value, step=1000, units=("", "k", "M", "B")).strip()


def time_text(value: Any) -> str:
    """Seconds as `12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if not finite(value):
        return NOTHING
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def factor_text(value: Any) -> str:
    """2.3456 -> `2.35×`."""
    return f"{value:.2f}×" if finite(value) else NOTHING


def _scaled(value: Any, *, step: int, units: tuple[str, ...]) -> str:
    if not finite(value):
        return NOTHING
    size = float(value)
    for unit in units:
        if abs(size) < step or unit == units[-1]:
            break
        size /= step
    text = f"{size:.0f}" if size >= 100 or size == int(size) else f"{size:.3g}"
    return f"{text} {unit}"
