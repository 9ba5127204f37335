"""`RUN:STAGE` is read back as it was written, whoever reads it."""

from __future__ import annotations

import pytest

from lwfed.run.parent import Parent, parent_text, parse_parent
from lwfed.types.errors import SpecError


@pytest.mark.parametrize("parent", [("base", 1), ("mine-1234abcd", 12), ("a:b", 2), None])
def test_a_parent_is_read_as_it_was_written(parent: Parent | None) -> None:
    assert parse_parent(parent_text(parent)) == parent


@pytest.mark.parametrize("text", ["base", "base:", ":3", "base:0", "base:-1", "base:x", "base:²"])
def test_what_names_no_stage_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(SpecError, match="RUN:STAGE") as refused:
        parse_parent(text)
    assert f"`{text}`" in str(refused.value)


def test_no_text_is_no_parent() -> None:
    assert parse_parent(None) is parse_parent("") is None
