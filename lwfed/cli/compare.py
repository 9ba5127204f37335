"""`lwfed compare`: trains the strategies that are not committed yet, and compares them in a table and a page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lwfed.cli.history import open_runs, pick_run
from lwfed.cli.options import DEFAULT_STORE, Json, Spec, StoreUri, output_folder, parse_seeds
from lwfed.drive import training
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.drive.display import Display
from lwfed.formats import bytes_text, factor_text, flops_text, metric_title
from lwfed.report.compare.budget import Budget, parse_budget, reaches
from lwfed.report.compare.compare import compare_runs, plausible
from lwfed.report.compare.records import Comparison
from lwfed.report.compare.table import budget_rows, curves, difference_text, quality_text, rows
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.spec.load import load_spec
from lwfed.spec.run import STRATEGIES, RunSpec
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.types.errors import LwfedError, SpecError
from lwfed.types.records import DataRecord

OF_ONE = re.compile(rf"({'|'.join(STRATEGIES)}):(.*)", re.DOTALL)
SUFFIX = re.compile(rf"-({'|'.join(STRATEGIES).replace('_', '-')})$")


def compare(
    spec: Spec = None,
    strategies: Annotated[
        str, typer.Option("--strategies", metavar="NAMES", help="The strategies to compare, separated by commas.")
    ] = "end_to_end,layerwise,progressive",
    run: Annotated[
        list[str] | None,
        typer.Option("--runs", metavar="RUN,RUN", help="Compare these runs of --store, and train nothing."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget", metavar="QUANTITY=AMOUNT", help="A client's budget: bytes=200MB, flops=3T or memory=1GiB."
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            metavar="KEY=VALUE",
            help="Change a key, for one strategy: -o end_to_end:training.local_epochs=1.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="One run per seed; default: the spec's seed.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="The metric to compare; default: the objective's headline."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-O", metavar="DIR", help="Folder to write to; default: compare-NAME."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also compare runs that differ in data or model.")] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Compare strategies: quality against rounds, bytes and FLOPs, and the memory of each stage.

    Trains runs that are not committed yet, one per strategy and seed, as `lwfed run` does. Writes one page,
    compare.html, its figures as SVG and PNG, and the numbers as JSON.
    """
    console = make_console(stderr=as_json)
    budgets = [parse_budget(text) for text in budget or ()]
    if run:
        if spec is not None:
            raise SpecError("SPEC and --runs exclude each other", remedy="pass only one of them")
        opened = open_runs(store)
        ids = [name for text in run for name in text.split(",") if name]
        records = [pick_run(opened, run_id) for run_id in ids]
        name = SUFFIX.sub("", records[0].name)
    else:
        specs = wanted_specs(spec, overrides=override or [], strategies=strategies, seeds=seeds)
        name = SUFFIX.sub("", specs[0].name)
        for item in specs:
            if metric is not None and not plausible(metric, item):
                raise SpecError(
                    f"no run of this spec will have the metric `{metric}`",
                    remedy="choose one such as test/t2i/R@1, test/accuracy, test/loss or train/loss",
                )
        opened = open_store(specs[0].store.uri)
        records = [runs.read_run(opened, run_id) for run_id in _obtain(specs, store=opened, console=console)]
    comparison = compare_runs([(item, *runs.history(opened, item)) for item in records], metric=metric, force=force)
    folder = output or Path(f"compare-{name}")
    page = write_files(comparison, folder, name=name, data=records[0].data, budgets=budgets)
    values = {
        "name": name,
        "metric": comparison.metric,
        "groups": rows(comparison),
        "budgets": [row for limit in budgets for row in budget_rows(reaches(comparison, limit))],
        "notes": list(comparison.notes),
        "page": str(page),
    }
    numbers = json.dumps({**values, "curves": curves(comparison)}, ensure_ascii=False, allow_nan=False, indent=1)
    (folder / "compare.json").write_text(numbers + "\n", encoding="utf-8")
    _show(comparison, budgets, console=console)
    console.print(f"    page  {page}\n figures  {folder}/*.svg, *.png; numbers: compare.json")
    if as_json:
        print_json(values)


def wanted_specs(source: str | None, *, overrides: Sequence[str], strategies: str, seeds: str | None) -> list[RunSpec]:
    """Returns a spec per strategy and seed; they differ only in what `-o STRATEGY:KEY=VALUE` changes.

    Raises:
        SpecError: A strategy or a seed is invalid, or a value does not fit.
    """
    named = [name.strip().replace("-", "_") for name in strategies.split(",") if name.strip()]
    unknown = [name for name in named if name not in STRATEGIES]
    if unknown or not named:
        raise SpecError(f"`{strategies}` is not a list of strategies", remedy=f"choose from {', '.join(STRATEGIES)}")
    own: dict[str, list[str]] = {name: [] for name in STRATEGIES}
    shared: list[str] = []
    for text in overrides:
        found = OF_ONE.fullmatch(text)
        (own[found[1]] if found else shared).append(found[2] if found else text)
    base = load_spec(source, overrides=shared)
    stem = SUFFIX.sub("", base.name)
    return [
        load_spec(
            source,
            overrides=[
                *shared, *own[strategy], f"strategy={strategy}", f"seed={seed}",
                f"name={stem[:40]}-{strategy.replace('_', '-')}",
            ],
        )
        for seed in parse_seeds(seeds, default=base.seed)
        for strategy in dict.fromkeys(named)
    ]  # fmt: skip


def write_files(
    comparison: Comparison, folder: Path, *, name: str, data: DataRecord, budgets: Sequence[Budget]
) -> Path:
    """Writes the page and figures to a folder. Returns the page's path."""
    from lwfed.report.compare.figures import comparison_files  # matplotlib
    from lwfed.report.compare.page import render_comparison

    output_folder(folder)
    for file, content in comparison_files(comparison, budgets=budgets).items():
        (folder / file).write_bytes(content)
    page = folder / "compare.html"
    page.write_text(render_comparison(comparison, name=name, data=data, budgets=budgets), encoding="utf-8")
    return page


def _obtain(specs: Sequence[RunSpec], *, store: Store, console: Console) -> list[str]:
    """Finds or trains a run per spec. Returns their ids."""
    with Display(console) as display:
        wanted = [training.look_up(spec, options=Options(), store=store, emit=display) for spec in specs]
    done = sum(item.done is not None for item in wanted)
    console.print(f"{done} of {len(wanted)} runs are committed already")
    ids = []
    for number, item in enumerate(wanted, start=1):
        if item.done is not None:
            ids.append(item.done)
            continue
        what = f"{item.spec.strategy}, seed {item.spec.seed}"
        console.rule(f"run {number} of {len(wanted)}: {what}", align="left", style="dim")
        again = f"the same command; {len(ids)} of {len(wanted)} runs are done"
        try:
            ids.append(training.train(item, store=store, console=console, resume_with=again).run_id)
        except LwfedError:
            console.print(f"run {number} of {len(wanted)} ({what}) failed; {len(ids)} runs are done")
            raise
    return ids


def _show(comparison: Comparison, budgets: Sequence[Budget], *, console: Console) -> None:
    title = "Cost per client; in brackets, the reduction against end to end"
    score = metric_title(comparison.metric, short=True)
    heads = ("seeds", score, "moved", "frozen, once", "computed", "memory")
    table = make_table(title, left=("strategy",), right=heads)
    for group, row in zip(comparison.groups, rows(comparison), strict=True):
        reference = group is comparison.reference
        less = {} if row["less"] is None or reference else row["less"]
        gained = "" if reference else difference_text(comparison.metric, row["quality_difference"])
        table.add_row(
            row["label"],
            str(len(row["seeds"])),
            quality_text(comparison.metric, group.final) + (f" ({gained})" if row["less"] and gained else ""),
            bytes_text(row["moved_bytes"]) + _factor(less.get("bytes")),
            bytes_text(row["frozen_bytes"]) if row["frozen_bytes"] else "",
            flops_text(row["flops"]) + _factor(less.get("flops")),
            bytes_text(row["peak_bytes"]) + _factor(less.get("memory")),
        )
    console.print(table)
    for budget in budgets:
        for reach in reaches(comparison, budget):
            best = quality_text(comparison.metric, reach.best)
            console.print(f"{budget.quantity} {budget.text}  {reach.group.label}: best {best}; {reach.verdict}")
    for note in comparison.notes:
        console.print(f"[yellow]note:[/] {note}")


def _factor(value: float | None) -> str:
    return "" if value is None else f" ({factor_text(value)})"
