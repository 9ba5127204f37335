"""docs/spec.md and docs/cli.md say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.cli.reference import PAGES
from lwfed.types.errors import EXIT_CODES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.partition("## Exit codes")[2].splitlines() if "|" in line]
    assert {int(code): name for code, name in rows[2:]} == EXIT_CODES
