"""Components are thin: they import nothing but kfp, call a task of lwfed by its real names; pages say what they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler
from kfp import components as kfp_components

from components import readme
from components.building import at, without_comments
from lwfed.drive import tasks

FOLDER = Path(readme.__file__).parent
UNSAFE = {"n", "y", "no", "yes", "on", "off", "true", "false", "null"}
"""Names that YAML 1.1 reads as something else."""


def component_of(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}.component"), name)


def source_of(name: str) -> ast.Module:
    return ast.parse((FOLDER / name / "component.py").read_text(encoding="utf-8"))


def test_every_component_is_known() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/component.py")} == set(readme.NAMES)


@pytest.mark.parametrize("name", readme.NAMES)
def test_module_imports_only_the_standard_library_and_kfp(name: str) -> None:
    modules = set()
    for node in source_of(name).body:
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(str(node.module).partition(".")[0])
    assert modules <= {"kfp", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", readme.NAMES)
def test_body_is_a_few_lines_around_one_task(name: str) -> None:
    function = next(node for node in source_of(name).body if isinstance(node, ast.FunctionDef))
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "tasks"
    ]
    assert len(calls) == 1 and len(function.body) <= 9
    called = calls[0].func
    assert isinstance(called, ast.Attribute) and called.attr == name and not calls[0].args
    given = {keyword.arg for keyword in calls[0].keywords}
    wanted = inspect.signature(getattr(tasks, name)).parameters
    assert given == set(wanted)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in wanted.values())


@pytest.mark.parametrize("name", readme.NAMES)
def test_interface_is_safe(name: str) -> None:
    interface = component_of(name).component_spec
    names = {*interface.inputs, *(interface.outputs or {})}
    assert not names & UNSAFE
    assert "run_id" not in names
    kinds = {item.type for item in interface.inputs.values()}
    assert kinds <= {"String", "Integer", "Boolean", "TaskConfig", "PipelineTaskFinalStatus"}
    assert all(item.description for item in (*interface.inputs.values(), *(interface.outputs or {}).values()))


@pytest.mark.parametrize("name", readme.NAMES)
def test_component_installs_nothing_and_takes_the_image_it_is_given(name: str, tmp_path: Path) -> None:
    original = component_of(name)
    before = original.component_spec.implementation.container.image
    built = at(original, "registry.example/lwfed@sha256:0", name="another-name")
    path = tmp_path / "component.yaml"
    compiler.Compiler().compile(built, str(path))
    text = path.read_text(encoding="utf-8")
    loaded = kfp_components.load_component_from_text(text)
    assert loaded.component_spec.implementation.container.image == "registry.example/lwfed@sha256:0"
    assert loaded.component_spec.name == "another-name"
    assert "pip install" not in text
    assert original.component_spec.implementation.container.image == before
    assert original.component_spec.description is not None


def test_components_name_one_image() -> None:
    assert len({importlib.import_module(f"components.{name}.component").IMAGE for name in readme.NAMES}) == 1


def test_words_are_left_out_of_what_pods_run() -> None:
    source = '\n\ndef double(x: int) -> int:\n    """Doubles."""\n    # twice\n    return (\n        2 * x\n    )\n'
    assert without_comments(source) == "def double(x: int) -> int:\n    return 2 * x\n"


@pytest.mark.parametrize("name", readme.NAMES)
def test_page_is_up_to_date(name: str) -> None:
    page = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert page == readme.readme(name), "run `python -m components.readme`"


@pytest.mark.parametrize("name", readme.NAMES)
def test_metadata_are_complete(name: str) -> None:
    metadata = yaml.safe_load((FOLDER / name / "metadata.yaml").read_text(encoding="utf-8"))
    assert set(metadata) == {"name", "stability", "dependencies", "tags", "lastVerified", "ci"}
    assert metadata["stability"] in ("experimental", "alpha", "beta", "stable")
    assert [item["name"] for item in metadata["dependencies"]["kubeflow"]] == ["Pipelines"]
    assert all(isinstance(tag, str) and tag for tag in metadata["tags"])
    assert metadata["lastVerified"].tzinfo is not None
