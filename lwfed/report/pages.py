"""Self-contained HTML pages, and the common palette of pages and figures for light and dark themes."""

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
"""Name -> colours in the light and the dark theme; no two light ones are equal. `c1` ... are for series."""
LIGHT, DARK = ("".join(f"--{name}:{pair[theme]};" for name, pair in PALETTE.items()) for theme in (0, 1))
STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    ".figure *{stroke-linejoin:round}"
    ".figure text{paint-order:stroke;stroke:var(--card);stroke-width:3px}"
)
"""Style for figures: the colours of both themes, and a halo that separates text from lines below it."""


def page(template: str, **values: Any) -> str:
    """Renders a template of this package; provides `style`.

    Args:
        template: Its file name.
        values: All variables that it uses; a missing one is an error.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(formats, f"{name}_text") for name in FILTERS}
    return environment.from_string(_read(template)).render(style=Markup(STYLE + "\n" + _read("style.css")), **values)


def _read(name: str) -> str:
    return (resources.files("lwfed.report") / "templates" / name).read_text(encoding="utf-8")
