"""docs/spec.md, docs/cli.md and the tables of docs/agents.md say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.cli.reference import PAGES, policy_table
from lwfed.types.errors import EXIT_CODES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.partition("## Exit codes")[2].splitlines() if "|" in line]
    assert {int(code): name for code, name in rows[2:]} == EXIT_CODES


def test_every_key_of_an_agents_policy_is_documented() -> None:
    page = (DOCS / "agents.md").read_text(encoding="utf-8")
    assert policy_table() in page, f"docs/agents.md needs this table:\n{policy_table()}"


def test_the_exit_codes_of_agents_are_what_they_are_said_to_be() -> None:
    page = (DOCS / "agents.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert rows and {int(code): name for code, name, _ in rows}.items() <= EXIT_CODES.items()
