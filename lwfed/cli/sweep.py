"""`lwfed sweep`: trains many variants of a spec and ranks them by a validation metric."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lwfed import cpus, environment
from lwfed.catalog.launcher import launcher_kind
from lwfed.cli.options import Json, Spec, output_folder, parse_seeds
from lwfed.cost.architectures import architectures_of
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.drive.interrupts import interrupting_on_sigterm
from lwfed.drive.trackers import record_sweep_of
from lwfed.formats import HEADLINES, metric_title, score_text, seconds_text
from lwfed.plan.stages import plan_stages
from lwfed.spec.load import load_spec
from lwfed.spec.run import RunSpec
from lwfed.store.opening import open_store
from lwfed.sweep.space import Range, Value, overrides_of, parse_choices, parse_search, probes_of, refuse_repeated
from lwfed.types.canonical import digest_of
from lwfed.types.errors import SpecError

if TYPE_CHECKING:  # Optuna and matplotlib take seconds
    from lwfed.report.sweep import SweepResult, TrialRow

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
DEFAULT_TRIALS = 20


def sweep(
    spec: Spec = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=V,V", help="Try every combination of these values.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search", metavar="KEY=A..B[:log]", help="Search this range, or list of values; --grid's too then."
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help=f"Trials in all; default: the whole grid, {DEFAULT_TRIALS} of a search."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="A validation metric; default: the objective's headline."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Train each trial once per seed, and take the mean.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Trials at a time; they share this machine's CPUs.")] = 1,
    prune: Annotated[bool, typer.Option(help="Stop trials below the median of earlier ones in the same round.")] = True,
    limit_s: Annotated[
        float | None, typer.Option("--limit-s", min=1, help="Stop a run after this many seconds.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--override", metavar="KEY=VALUE", help="Change a key of every trial.")
    ] = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="The study, which resumes; default: the spec's name.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URI", help="The study's database; default: sqlite in the output folder."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Train trials that failed again.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Train nothing; only show the study.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-O", metavar="DIR", help="Folder to write to; default: sweep-NAME.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tune a spec: train variants of it, and rank them by a metric on the validation examples.

    --grid tries every combination, --search lets Optuna choose. The same command resumes a sweep that was interrupted;
    equal stages of different trials are trained once. Writes a page, sweep.html, with a table and plots.
    """
    overrides = override or []
    base = load_spec(spec, overrides=overrides)
    axes = [*map(parse_choices, grid or ()), *map(parse_search, search or ())]
    refuse_repeated(axes)
    name = study or base.name
    if not NAME.fullmatch(name):
        raise SpecError(f"`{name}` is no name of a study", remedy="use letters, digits, dots, dashes and underscores")
    decides = metric or base.validation_metric
    numbers = parse_seeds(seeds, default=base.seed)

    def spec_of(values: Mapping[str, Value], seed: int = numbers[0]) -> RunSpec:
        return load_spec(spec, overrides=[*overrides, *overrides_of(values), f"seed={seed}"])

    for values in probes_of(axes):
        _refuse_undecided(spec_of(values), decides)
    for axis in axes:
        _refuse_idle(axis.key, [spec_of({axis.key: value}) for value in axis.ends])
    folder = output_folder(output or Path(f"sweep-{name}"))
    console = make_console(stderr=as_json)
    with console.status("loading Optuna"):
        from lwfed.report.sweep import SweepResult
        from lwfed.sweep.study import Study, storage_uri
        from lwfed.sweep.sweep import SweepPlan, run_sweep
    maximise = not decides.endswith("loss")
    opened = Study(
        name, storage=storage or storage_uri(folder), axes=axes, maximise=maximise, prune=prune, seed=base.seed,
        fixed={"spec": digest_of(_plans(base)), "metric": decides, "seeds": list(numbers)},
    )  # fmt: skip
    if not show:
        whole = DEFAULT_TRIALS if search else opened.begin_grid()
        wanted = trials or whole if search else min(trials or whole, whole)
        begun = opened.resume(failed=retry)
        told = f", {begun} of them begun before" if begun else ""
        console.print(f"[bold]{name}[/]  {max(0, opened.num_left(wanted))} of {wanted} trials to train{told}")
        plan = SweepPlan(
            spec_of=spec_of, metric=decides, trials=wanted, seeds=numbers, jobs=jobs, limit_s=limit_s,
            store=open_store(base.store.uri), folder=folder,
            variables=environment.for_trial(name, cpus=max(1, cpus.usable() // jobs) if jobs > 1 else None),
        )  # fmt: skip
        with interrupting_on_sigterm():
            run_sweep(plan, study=opened, show=lambda row: console.print(_line(row, decides), markup=False))
    result = SweepResult(
        name, decides, maximise, tuple(axis.key for axis in axes), tuple(opened.rows()),
        log_keys=frozenset(axis.key for axis in axes if isinstance(axis, Range) and axis.log),
    )  # fmt: skip
    written = _write(result, folder, command=_command(spec, overrides, result))
    _draw(result, command=written["command"], page=written["page"], console=console)
    problem = None if show else record_sweep_of(result, base.tracking, page=Path(written["page"]))
    if problem:
        console.print(f"[yellow]warning:[/] MLflow does not have the sweep's result: {problem}")
    if as_json:
        print_json(written)


def _refuse_undecided(spec: RunSpec, metric: str) -> None:
    """Raises SpecError if a variant never has the metric, or has no validation examples that it needs."""
    from lwfed.steps.incomplete import refuse_metric, validation_of
    from lwfed.steps.sources import refuse_without_validation, server_source  # numpy

    if not spec.may_decide(metric):
        raise SpecError(
            f"a sweep cannot be decided by `{metric}`",
            remedy=f"choose a metric on the validation examples, such as {spec.validation_metric} or validation/loss; "
            "test examples are for the result alone",
        )
    remote = launcher_kind(spec.launch.kind).remote  # only pods see the data
    source = None if remote else server_source(spec)
    refuse_without_validation(spec, source, what="a sweep")
    if source is not None:
        refuse_metric(metric, validation_of(spec, source), model=spec.model, what="the sweep")


def _refuse_idle(key: str, specs: Sequence[RunSpec]) -> None:
    """Raises SpecError if a key's values all mean the same work, as where another key wins over it."""
    plans = [_plans(spec) for spec in specs]
    if len(plans) > 1 and all(plan == plans[0] for plan in plans):
        raise SpecError(
            f"`{key}` changes nothing in this spec, whatever its value",
            remedy="vary a key that decides the work; rates of `training.learning_rates` win over the common one",
        )


def _plans(spec: RunSpec) -> list[dict[str, Any]]:
    """Returns the plans of a spec's stages: all that decides its work, and not where it is done."""
    from lwfed.steps.prepare import count_architecture  # numpy

    architectures = architectures_of(spec.model, folder=environment.cache_folder(), count=count_architecture)
    depths = {modality: item.depth for modality, item in architectures.items()}
    return [plan.model_dump(mode="json") for plan in plan_stages(spec, depths=depths)]


def _write(result: SweepResult, folder: Path, *, command: str) -> dict[str, Any]:
    """Writes the page, the figures and sweep.json to a folder. Returns what sweep.json has."""
    from lwfed.report.sweep import sweep_files

    for file, content in sweep_files(result, command=command, test_metrics=_test_metrics(result)).items():
        (folder / file).write_bytes(content)
    values = {**result.to_values(), "command": command, "page": str(folder / "sweep.html")}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1)
    (folder / "sweep.json").write_text(text + "\n", encoding="utf-8")
    return values


def _test_metrics(result: SweepResult) -> list[str]:
    """Returns the test metrics to show: the first two headlines that a trial has."""
    return [name for name in HEADLINES if any(name in row.metrics for row in result.rows)][:2]


def _line(row: TrialRow, metric: str) -> str:
    settings = "  ".join(f"{key}={value}" for key, value in row.values.items())
    ended = score_text(metric, row.value) if row.status == "finished" else row.status
    reason = f"  ({row.reason})" if row.reason else ""
    return f"trial {row.number}  {ended}  {seconds_text(row.seconds)}  {settings}{reason}"


def _command(spec: str | None, overrides: Sequence[str], result: SweepResult) -> str:
    """Returns the command that trains the best trial again; empty if none has finished."""
    if result.best is None:
        return ""
    changes = [*overrides, *overrides_of(dict(result.best.values))]
    return shlex.join(["lwfed", "run", *([spec] if spec else []), *(word for text in changes for word in ("-o", text))])


def _draw(result: SweepResult, *, command: str, page: str, console: Console) -> None:
    from lwfed.report.sweep import setting_text

    shown = _test_metrics(result)
    heads = (metric_title(result.metric), *(metric_title(name, short=True) for name in shown), "time")
    table = make_table(f"{result.name}, best first", left=("trial", "status", *result.keys), right=heads)
    for row in result.ranked:
        table.add_row(
            str(row.number),
            row.status,
            *(setting_text(row.values.get(key)) for key in result.keys),
            score_text(result.metric, row.value),
            *(score_text(name, row.metrics.get(name)) for name in shown),
            seconds_text(row.seconds),
        )
    console.print(table)
    if command:
        console.print(f"    best  {command}", markup=False)
    console.print(f"    page  {page}", markup=False)
