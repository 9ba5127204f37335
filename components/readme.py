"""Generates each component's README.md from its signature, docstrings and metadata: `python -m components.readme`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

GENERATED = "<!-- Written by `python -m components.readme` from component.py and metadata.yaml; edit those. -->"
FOLDER = Path(__file__).parent
NAMES = ("prepare", "train_stage", "evaluate", "report", "cleanup")
"""The components, in the order of the pipeline."""
WIDTH = 120


def readme(name: str) -> str:
    """Returns the README of a component."""
    module = importlib.import_module(f"components.{name}.component")
    component = getattr(module, name)
    interface = component.component_spec
    metadata = yaml.safe_load((FOLDER / name / "metadata.yaml").read_text(encoding="utf-8"))
    lines = [GENERATED, f"# {metadata['name']}", "", _words(module.__doc__), "", _words(interface.description), ""]
    lines += ["## Inputs", ""]
    lines += _table(
        ("name", "type", "default", "meaning"),
        [(f"`{key}`", _type(item), _default(item), _words(item.description)) for key, item in interface.inputs.items()],
    )
    if interface.outputs:
        lines += ["## Outputs", ""]
        rows = [(f"`{key}`", _type(item), _words(item.description)) for key, item in interface.outputs.items()]
        lines += _table(("name", "type", "meaning"), rows)
    passed = [passthrough.field.name for passthrough in interface.task_config_passthroughs or ()]
    if passed:
        lines += [
            f"Settings of the task that it receives as `dsl.TaskConfig`: {', '.join(passed)}.",
            "",
        ]
    lines += ["## Use", "", "```python", *_use(name, interface.inputs), "```", "", "## Metadata", ""]
    return "\n".join([*lines, *_metadata(metadata)]).rstrip() + "\n"


def main() -> None:
    """Writes all READMEs next to their components."""
    for name in NAMES:
        (FOLDER / name / "README.md").write_text(readme(name), encoding="utf-8")


def _use(name: str, inputs: Mapping[str, Any]) -> list[str]:
    needed = [f"{key}={key}" for key, item in inputs.items() if not item.optional]
    call = f'task = at({name}, "REGISTRY/lwfed@sha256:...")('
    lines = [f"{call}{', '.join(needed)})"]
    if len(lines[0]) > WIDTH:  # as ruff formats it
        lines = [call, *(f"    {item}," for item in needed), ")"]
    return [f"from components.{name} import {name}", "from components.building import at", "", *lines]


def _metadata(metadata: Mapping[str, Any]) -> list[str]:
    needs = [f"{item['name']} {item['version']}" for item in metadata["dependencies"]["kubeflow"]]
    others = [
        " ".join(filter(None, (item["name"], item.get("version"))))
        for item in metadata["dependencies"].get("external_services", ())
    ]
    return [
        f"- Stability: {metadata['stability']}",
        f"- Kubeflow: {', '.join(needs)}",
        *([f"- Services: {', '.join(others)}"] if others else []),
        f"- Tags: {', '.join(metadata['tags'])}",
        f"- Last verified: {metadata['lastVerified']:%Y-%m-%d}",
    ]


def _type(item: Any) -> str:
    return str(item.type).partition("@")[0].removeprefix("system.")


def _default(item: Any) -> str:
    return f"`{item.default!r}`" if item.optional and item.default is not None else ""


def _words(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [*(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)), ""]


if __name__ == "__main__":
    main()
