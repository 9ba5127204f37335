"""HTML pages that need nothing else: one look for all, right on light and dark."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lwfed.report import formats
from lwfed.report.svg import STYLE

FILTERS = ("count", "number", "percent", "memory", "traffic", "flops", "size", "time", "factor")


def page(template: str, **values: Any) -> str:
    """Fills a template of this package; `style` is given to it.

    Args:
        template: Its file name.
        values: What it names; all of it, a missing value is an error.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(formats, f"{name}_text") for name in FILTERS}
    return environment.from_string(_read(template)).render(style=Markup(STYLE + "\n" + _read("style.css")), **values)


def _read(name: str) -> str:
    return (resources.files("lwfed.report") / "templates" / name).read_text(encoding="utf-8")
