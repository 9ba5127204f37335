"""Styles all figures: matplotlib's, with text as text and colours that follow the page's theme.

Figures are drawn in the light theme. An SVG refers to the palette's colours as CSS variables, so one drawing fits both
themes; a PNG keeps the light colours. One unit of a figure is one CSS pixel.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lwfed.formats import trimmed
from lwfed.report.pages import PALETTE, STYLE
from lwfed.report.series import Stage

COLOURS = {name: light for name, (light, _) in PALETTE.items()}
VARIABLES = {light: f"var(--{name})" for name, light in COLOURS.items()}
SERIES = [COLOURS[f"c{number}"] for number in range(1, 7)]
DOTS_PER_PIXEL = 2
"""Resolution of a PNG."""
PLAIN_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
DEFAULTS = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")}
"""matplotlib's defaults, so that no configuration of the machine changes a figure."""
LOOK = {
    "font.family": "DejaVu Sans", "font.size": 12, "text.color": COLOURS["soft"], "text.parse_math": False,
    "axes.labelcolor": COLOURS["soft"], "axes.edgecolor": COLOURS["soft"], "axes.linewidth": 1, "axes.axisbelow": True,
    "axes.facecolor": "none", "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left", "axes.grid": True, "axes.grid.axis": "y", "grid.color": COLOURS["faint"],
    "grid.linewidth": 1, "xtick.bottom": False, "ytick.left": False, "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"], "lines.linewidth": 2.2, "lines.markersize": 6.5,
    "lines.markeredgecolor": COLOURS["card"], "lines.markeredgewidth": 1.2, "lines.scale_dashes": False,
    "lines.dashed_pattern": (6, 4), "legend.frameon": False, "legend.fontsize": 12, "legend.borderpad": 0,
    "legend.borderaxespad": 0.3, "legend.handlelength": 2.6, "legend.columnspacing": 1.5, "figure.dpi": 72,
    "figure.facecolor": "none", "svg.fonttype": "none", "path.simplify": False,
}  # fmt: skip
"""matplotlib's parameters while a figure is made or written: see `@styled`."""
styled = rc_context(DEFAULTS | LOOK)
Write = Callable[[float], str]


def new_figure(width: float, height: float, *, label: str, pad: float = 3, gap: float = 0.0) -> Figure:
    """Returns an empty figure.

    Args:
        width: Pixels.
        height: Pixels.
        label: A description, for people who cannot see it.
        pad: Pixels around each plot.
        gap: Space between plots one below the other, as a share of the height.
    """
    layout = ConstrainedLayoutEngine(w_pad=pad / 72, h_pad=pad / 72, hspace=gap)
    figure = Figure(figsize=(width / 72, height / 72), layout=layout)
    figure.set_label(label)
    return figure


@styled
def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element for a page with `pages.STYLE`; always the same bytes for the same figure.

    Text stays text in the page's font. Only ids that are referred to remain; they are derived from the figure's label
    and their content.
    """
    label, data = str(figure.get_label()), io.StringIO()
    with rc_context({"svg.hashsalt": label}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # for measuring only: the page's font may have it
        figure.savefig(data, format="svg", metadata=PLAIN_METADATA)
    root = ElementTree.fromstring(data.getvalue())
    referred = set(re.findall(r'href="#(\w+)|url\(#(\w+)\)', data.getvalue()))
    names = {name for pair in referred for name in pair}
    for parent in root.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        for child in [child for child in parent if _is_empty(child)]:
            parent.remove(child)
        if parent.tag != "text":
            parent.text = None
        parent.tail = None
        parent.attrib = {key.rpartition("}")[2]: _plain(value) for key, value in parent.attrib.items()}
        if parent.get("id") not in names:
            parent.attrib.pop("id", None)
        if parent.get("transform", "").startswith("rotate(-0 "):
            del parent.attrib["transform"]
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label, "class": "figure"}
    return ElementTree.tostring(root, encoding="unicode")


def document(element: str) -> str:
    """Returns an SVG element as a standalone file."""
    style = f"<style>{STYLE}svg{{background:var(--card);font-family:system-ui,sans-serif}}</style>"
    head, _, rest = element.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


@styled
def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file in the light theme."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=72 * DOTS_PER_PIXEL, facecolor=COLOURS["card"], metadata={"Software": None})
    return data.getvalue()


def label_values(axis: Any, write: Write, *, count: int = 5) -> None:
    """Labels a linear axis at about `count` round numbers."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: trimmed(write(value))))


def label_factors(axis: Any, write: Write, *, low: float, high: float, count: int = 6) -> None:
    """Labels a logarithmic axis at 1, 2, 5 times powers of ten, or at fewer values if those are too many."""
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = [mark for mark in LogLocator(subs=factors, numticks=99).tick_values(low, high) if low <= mark <= high]
        if len(marks) <= count:
            break
    axis.set_major_locator(FixedLocator(marks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: trimmed(write(value))))


def label_rounds(axes: Axes, stages: Sequence[Stage], *, last: int, names: bool = True) -> None:
    """Sets up a horizontal axis of global rounds, with a band and a name per stage.

    Marks stages without rounds at the round where their blocks were appended.
    """
    axes.set_xlim(0.5, last + 0.5)
    axes.set_xticks(round_ticks(last))
    axes.set_xlabel("global round")
    for index, stage in enumerate(stage for stage in stages if stage.rounds):
        if index % 2 == 0:
            axes.axvspan(stage.first - 0.5, stage.last + 0.5, color=COLOURS["band"], lw=0, zorder=0)
        if names:
            name = f"stage {stage.number}" if stage.rounds > 0.12 * last else str(stage.number)
            above(axes, (stage.first + stage.last) / 2, name)
    untrained: dict[int, list[int]] = {}
    for stage in stages:
        if not stage.rounds:
            untrained.setdefault(stage.first, []).append(stage.number)
    for first, numbers in untrained.items() if names else ():
        name = "–".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
        at_end = first > 0.75 * last
        axes.axvline(first - 0.5, color=COLOURS["soft"], lw=1, ls=(0, (2, 4)), zorder=1)
        text = f"{name} untrained ◆" if at_end else f"◆ {name} untrained"
        above(axes, first - 0.5, text, lift=22, ha="right" if at_end else "left", shift=5 if at_end else -5)


def round_ticks(last: int, *, count: int = 10) -> list[int]:
    """Returns about `count` integers from 1 to `last`, including 1, evenly spaced except for the first step."""
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if last <= count * step)
    return [1, *range({1: 2, 2: 3}.get(step, step), last + 1, step)]


def label_ends(axes: Axes, ends: Iterable[tuple[float, str, str]], *, height: float, gap: float = 15) -> None:
    """Writes texts to the right of a plot at the heights of their values, moved apart if they overlap.

    Args:
        axes: The plot, with its limits set.
        ends: (value, text, colour) of each text.
        height: Approximate height of the plot in pixels.
        gap: Distance between two texts in pixels.
    """
    low, high = axes.get_ylim()
    spread: list[tuple[float, str, str]] = []
    for value, text, colour in sorted(ends):
        at = height * (value - low) / (high - low)
        spread.append((max(at, spread[-1][0] + gap) if spread else at, text, colour))
    limit = height
    for at, text, colour in reversed(spread):
        limit = min(at, limit)
        axes.annotate(
            text, (1, limit / height), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points",
            va="center_baseline", color=colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        limit -= gap


def above(
    axes: Axes, x: float, text: str, *, lift: float = 8, shift: float = 0, ha: str = "center", **look: Any
) -> None:
    """Writes a text above a plot at x, moved by `shift` and `lift` pixels; `look`: matplotlib's keywords."""
    axes.annotate(
        text, (x, 1), xycoords=axes.get_xaxis_transform(), xytext=(shift, lift), textcoords="offset points", ha=ha,
        annotation_clip=False, **look,
    )  # fmt: skip


def dots(count: int, *, marker: str = "o") -> dict[str, Any]:
    """Returns matplotlib's keywords for the markers of a line through `count` points."""
    return {"marker": marker, "ms": 6.5} if count <= 45 else {"marker": marker, "ms": 3, "mew": 0}


def legend_below(figure: Any, handles: Sequence[Any], *, width: float = 560) -> None:
    """Adds a legend below the plots of a figure of `width` pixels, in one or several rows."""
    columns = legend_columns([handle.get_label() for handle in handles], width=width)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def legend_columns(labels: Sequence[str], *, width: float = 560) -> int:
    """Returns the number of columns of a legend, from the length of the longest label."""
    return max(1, min(len(labels), int(width / (50 + 7.2 * max(map(len, labels))))))


def _is_empty(element: ElementTree.Element) -> bool:
    """Whether an element of matplotlib's SVG draws nothing: a background without a colour, or a style element."""
    return element.get("style") == "fill: none" or element.tag.endswith("}style")


def _plain(value: str) -> str:
    """Returns an attribute with at most two decimals, without a font family, and with the theme's colours."""
    value = re.sub(r"-?\d+\.\d+", lambda number: f"{round(float(number[0]), 2) + 0.0:g}", value)
    value = re.sub(r"(; )?font-family: [^;]*", "", value).replace("\n", "")
    return re.sub("#[0-9a-f]{6}", lambda colour: VARIABLES.get(colour[0], colour[0]), value)
