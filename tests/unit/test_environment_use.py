"""Environment variables are touched in one module, and only those that speak to people write to standard output."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lwfed

PACKAGE = Path(lwfed.__file__).parent
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
SPEAKERS = {
    "drive/console.py",  # every command's lines
    "launch/exits.py",  # how a process ends
    "launch/step_process.py",  # a step's events, as JSON lines
    "launch/worker.py",
}
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _names_of(tree: ast.Module, module: str) -> Iterator[str]:
    """Yields the names that a file takes from a module, as attributes or by import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            yield from (name.name for name in node.names)


def test_only_one_module_touches_environment_variables() -> None:
    users = {path for path, tree in _modules() if ENVIRONMENT & set(_names_of(tree, "os"))}
    assert users == {"environment.py"}


def test_only_the_rim_writes_to_standard_output() -> None:
    def writes(tree: ast.Module) -> bool:
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        return "print" in calls or bool(STREAMS & set(_names_of(tree, "sys")))

    writers = {path for path, tree in _modules() if writes(tree)}
    assert {path for path in writers if not path.startswith("cli/")} <= SPEAKERS
