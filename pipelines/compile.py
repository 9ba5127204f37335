"""`lwfed compile`: the pipeline of an experiment as a file, the same bytes for the same experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lwfed.cli.options import Fresh, Json, Spec
from lwfed.drive.console import make_console, print_json
from lwfed.formats import bytes_text
from lwfed.plan.strategies import stage_rounds
from lwfed.spec.load import build_spec, load_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store.opening import open_store
from lwfed.types.errors import SpecError
from pipelines.client.options import Stages, StartFrom
from pipelines.client.stages import parse_parent, parse_stages
from pipelines.workflow_size import ARGO_LIMIT, RETRY_LIMIT, WorkflowSize, workflow_size

REMOTE = "://"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Compiled:
    """A pipeline on disk.

    Attributes:
        path: The file.
        spec: The experiment as the cluster runs it.
        file_bytes: The file's size.
        workflow: What becomes of it in the cluster.
        titles: Its stages.
    """

    path: Path
    spec: RunSpec
    file_bytes: int
    workflow: WorkflowSize
    titles: tuple[str, ...]


def compile_command(
    spec: Spec = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write; -o is not --set here.")
    ] = Path("pipeline.yaml"),
    override: Annotated[
        list[str] | None, typer.Option("--set", "--override", metavar="KEY=VALUE", help="Change a key: --set seed=1.")
    ] = None,
    stages: Stages = None,
    start_from: StartFrom = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Write the pipeline of an experiment, for Kubeflow Pipelines' UI or any of its clients.

    The same experiment gives the same bytes. `-o` names the file here; `--set KEY=VALUE` changes a key of the spec.
    """
    if output.suffix not in SUFFIXES:
        remedy = f"--set {output} changes a key" if "=" in str(output) else "name it pipeline.yaml"
        raise SpecError(f"`-o {output}` names no YAML file", remedy=remedy)
    values = load_spec(spec, overrides=override or [])
    parent = parse_parent(start_from)
    count = len(stage_rounds(values.strategy, values.stages.rounds))
    chosen = parse_stages(stages, count=count, first=parent[1] if parent else None)
    compiled = compile_pipeline(values, output, stages=chosen, parent=start_from or "", fresh=fresh)
    if as_json:
        print_json(
            {
                "file": str(compiled.path),
                "file_bytes": compiled.file_bytes,
                "workflow_bytes": compiled.workflow.total_bytes,
                "pods": compiled.workflow.pods,
                "stages": list(compiled.titles),
            }
        )
    console = make_console(stderr=as_json)
    for line in lines_of(compiled):
        console.print(line, highlight=False, markup=False)


def compile_pipeline(
    spec: RunSpec, path: Path, *, stages: Sequence[int] | None = None, parent: str = "", fresh: bool = False
) -> Compiled:
    """Writes the pipeline of an experiment to a file; a spec too long for a parameter goes to the store.

    Args:
        spec: The experiment.
        path: The file.
        stages: The stages to train; None: all, or from the parent's on.
        parent: `RUN:STAGE`; empty for none.
        fresh: Train anew, even where equal work is committed.

    Returns:
        What was written.

    Raises:
        SpecError: The spec cannot run on a cluster, or the stages do not fit it.
        UnreachableError: The store does not take the spec.
    """
    import yaml
    from kfp import compiler

    from pipelines.pipeline import chosen, experiment_pipeline, outlines_of
    from pipelines.spec_text import spec_text

    there = for_cluster(spec)
    pipeline = experiment_pipeline(there, stages=stages, parent=parent, fresh=fresh)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    if spec_text(there).startswith("sha256:"):
        spec_text(there, store=open_store(there.store.uri))
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    return Compiled(
        path=path,
        spec=there,
        file_bytes=path.stat().st_size,
        workflow=workflow_size(*documents),
        titles=tuple(outline.title for outline in chosen(outlines_of(there), stages=stages, parent=parent)),
    )


def for_cluster(spec: RunSpec) -> RunSpec:
    """Gives the spec as a cluster runs it: with pods for the clients, unless it names another launcher.

    Raises:
        SpecError: It has no image, or a store that pods do not share.
    """
    if not spec.kubernetes.image:
        raise SpecError("no image is named for the pipeline's pods", remedy="set kubernetes.image, best by its digest")
    if REMOTE not in spec.store.uri or spec.store.uri.startswith("file:"):
        raise SpecError(f"pods do not share the folder {spec.store.uri}", remedy="set store.uri to s3://BUCKET/PREFIX")
    if "kind" in spec.launch.model_fields_set:
        return spec
    values: dict[str, Any] = to_values(spec)
    values["launch"]["kind"] = "kubernetes"
    return build_spec(values)


def lines_of(compiled: Compiled) -> list[str]:
    """Says what was written, and whether a cluster takes it."""
    size = compiled.workflow
    lines = [
        f"{compiled.path}  {bytes_text(compiled.file_bytes)}, {len(compiled.titles)} stages, {size.pods} pods besides "
        "those of clients",
        *(f"  {title}" for title in compiled.titles),
        f"The workflow object grows to about {bytes_text(size.total_bytes)}; Argo takes {bytes_text(ARGO_LIMIT)}.",
    ]
    if size.total_bytes > RETRY_LIMIT:
        lines.append("It is too large for a failed run to be retried: shorten the spec, or compile fewer stages.")
    elif size.total_bytes > ARGO_LIMIT:
        lines.append("Argo compresses it above that; compile fewer stages to stay below.")
    return lines
