"""Builds a component for a pipeline: with its image, name and passthroughs, and as small as possible.

The workflow object of a run repeats each task's source and interface up to eight times, so the build removes
everything that only people read (docstrings, descriptions, line breaks).
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent


def at(component: Any, image: str, *, name: str | None = None, passthroughs: Sequence[Any] = ()) -> BaseComponent:
    """Builds a component for a pipeline.

    Args:
        component: One of `components.*.component`.
        image: The image of its pod, with lwfed and kfp.
        name: The name of its tasks; None: the function's name.
        passthroughs: Settings of a task that it receives as a `dsl.TaskConfig` and that do not apply to its own pod.

    Returns:
        A new component; `component` itself stays unchanged.
    """
    built = dsl.component(
        component.python_func,
        base_image=image,
        packages_to_install=[],
        install_kfp_package=False,
        task_config_passthroughs=list(passthroughs) or None,
    )
    interface = built.component_spec
    interface.name = name or interface.name
    interface.description = None
    interface.inputs = {key: replace(item, description=None) for key, item in (interface.inputs or {}).items()}
    interface.outputs = {key: replace(item, description=None) for key, item in (interface.outputs or {}).items()}
    *shell, source = interface.implementation.container.command
    interface.implementation.container.command = [*shell, without_comments(source)]
    return built


def without_comments(source: str) -> str:
    """Returns a module's source without docstrings, comments and line breaks within statements."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree) + "\n"
