"""`lwfed compile`: writes the pipeline of an experiment to a file, and reports its size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lwfed.cli.options import Fresh, Json, Spec
from lwfed.formats import bytes_text
from lwfed.run.parent import parse_parent
from lwfed.spec.load import load_spec
from lwfed.types.errors import SpecError
from pipelines.commands.screen import make_screen
from pipelines.compile import compile_pipeline, size_warning
from pipelines.options import Stages, StartFrom
from pipelines.stages import Work, count_stages, parse_stages

SUFFIXES = (".yaml", ".yml")


def compile_command(
    spec: Spec = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write; use --set to change a key.")
    ] = Path("pipeline.yaml"),
    override: Annotated[
        list[str] | None, typer.Option("--set", "--override", metavar="KEY=VALUE", help="Change a key: --set seed=1.")
    ] = None,
    stages: Stages = None,
    start_from: StartFrom = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Write the pipeline of an experiment to a file, for Kubeflow Pipelines' UI or any of its clients.

    The same experiment yields the same bytes. `-o` names the file here; `--set KEY=VALUE` changes a key of the spec.
    """
    if output.suffix not in SUFFIXES:
        remedy = f"use --set {output} to change a key" if "=" in str(output) else "name it pipeline.yaml"
        raise SpecError(f"`-o {output}` is not a YAML file", remedy=remedy)
    values = load_spec(spec, overrides=override or [])
    chosen = parse_stages(stages, count=count_stages(values))
    compiled = compile_pipeline(Work(values, chosen, parse_parent(start_from), fresh), output)
    screen = make_screen(as_json)
    written = f"{compiled.path}  {bytes_text(compiled.file_bytes)}, {len(compiled.titles)} stages"
    screen.say(f"{written}, {compiled.pods} pods plus those of clients")
    for title in compiled.titles:
        screen.say(f"  {title}")
    screen.say(size_warning(compiled) or f"The Workflow object grows to {bytes_text(compiled.object_bytes)} at most.")
    sizes = {"file_bytes": compiled.file_bytes, "workflow_bytes": compiled.object_bytes, "pods": compiled.pods}
    screen.result({"file": str(compiled.path), **sizes, "stages": compiled.titles})
