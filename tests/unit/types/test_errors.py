"""Laws of errors: each kind has its own exit code, and says problem and remedy."""

from __future__ import annotations

import pytest

from lwfed.types import errors
from lwfed.types.errors import EXIT_CODES, FINAL_CODES, LwfedError, exit_name

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LwfedError)),
    key=lambda kind: kind.exit_code,
)


def test_every_kind_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes) and set(codes) <= set(EXIT_CODES)
    assert all(EXIT_CODES[kind.exit_code] == kind.name for kind in KINDS)
    assert not {code for code in codes if code != 1} & {0, 1, 2, *range(126, 256)}, (
        "the shell's own codes are left alone"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_problem_and_remedy(kind: type[LwfedError]) -> None:
    error = kind("it is broken", remedy="fix it")
    assert str(error) == "it is broken -> fix it"
    assert (error.problem, error.remedy) == ("it is broken", "fix it")
    assert str(kind("it is broken")) == "it is broken"


def test_a_kill_or_a_full_memory_may_be_tried_again_and_a_bad_spec_not() -> None:
    assert {10, 11, 14} <= FINAL_CODES
    assert not FINAL_CODES & {1, 12, 16, 17, 18, 137, -9, 143}


@pytest.mark.parametrize(
    ("code", "name"),
    [(0, "success"), (11, "bad data"), (-9, "killed by signal 9"), (137, "killed by signal 9"), (77, "exit code 77")],
)
def test_exit_codes_are_named(code: int, name: str) -> None:
    assert exit_name(code) == name
