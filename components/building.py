"""A component as a pipeline needs it: with the image, the name and the passthroughs of that pipeline, and small.

The workflow object of a run repeats each task's source and interface up to eight times, so what only people read
(docstrings, descriptions, line breaks) is left out of them here.
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
    """Builds a component again.

    Args:
        component: One of `components.*.component`.
        image: The image its pod runs, with lwfed and kfp in it.
        name: What tasks of it are called; None: as its function.
        passthroughs: Which settings of a task are handed to it as a `dsl.TaskConfig`, in place of being its pod's own.

    Returns:
        The component; `component` itself stays as it is.
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
    interface.implementation.container.command = [*shell, without_words(source)]
    return built


def without_words(source: str) -> str:
    """Returns a module's source without docstrings, comments and line breaks within statements."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree) + "\n"
