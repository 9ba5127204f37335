"""HTML pages that need nothing else, and the one palette of pages and figures, light and dark."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lwfed import formats

FILTERS = ("bytes", "flops", "amount", "seconds", "count", "percent", "factor")
PALETTE = {
    "card": ("#ffffff", "#171c24"), "ink": ("#1b2330", "#e8ebf0"), "soft": ("#5b6675", "#9aa5b4"),
    "faint": ("#e6e9ee", "#2b323d"), "band": ("#f3f5f8", "#1e242e"), "bad": ("#c9302c", "#ff7b72"),
    "c1": ("#2563c9", "#6ea3ff"), "c2": ("#d9730d", "#ffa657"), "c3": ("#0b8a6a", "#3ecfa5"),
    "c4": ("#b0309b", "#f08be0"), "c5": ("#6b5bd6", "#a79bff"), "c6": ("#7d6a2f", "#d3bd72"),
}  # fmt: skip
"""Name -> colour in the light and in the dark theme, no two light ones alike; `c1` ... are for series."""
LIGHT, DARK = ("".join(f"--{name}:{pair[theme]};" for name, pair in PALETTE.items()) for theme in (0, 1))
STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    ".figure *{stroke-linejoin:round}"
    ".figure text{paint-order:stroke;stroke:var(--card);stroke-width:3px}"
)
"""What figures need: the colours of both themes, and a halo that keeps text apart from lines below it."""


def page(template: str, **values: Any) -> str:
    """Returns a template of this package, filled; `style` is provided.

    Args:
        template: Its file name.
        values: What it names; all of it, a missing value is an error.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(formats, f"{name}_text") for name in FILTERS}
    return environment.from_string(_read(template)).render(style=Markup(STYLE + "\n" + _read("style.css")), **values)


def _read(name: str) -> str:
    return (resources.files("lwfed.report") / "templates" / name).read_text(encoding="utf-8")
