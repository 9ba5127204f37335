"""Laws of errors: each kind has its own exit code, and says problem and remedy."""

from __future__ import annotations

import errno

import pytest

from lwfed.launch.exits import run_to_exit
from lwfed.types import errors
from lwfed.types.errors import EXIT_CODES, FINAL_CODES, LwfedError, exit_name

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LwfedError)),
    key=lambda kind: kind.exit_code,
)


def test_every_kind_has_an_exit_code_of_its_own_or_that_of_the_kind_it_belongs_to() -> None:
    codes = [kind.exit_code for kind in KINDS if "exit_code" in vars(kind)]
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 18),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 18),
        (SystemError("error return without exception set"), 18),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 18),
        (OSError(errno.EFBIG, "File too large", "x"), 16),
        (OSError(errno.ENOSPC, "No space left on device"), 16),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 17),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 17),
        (ImportError("no module named x"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1),
    ],
)
def test_limits_and_places_of_the_system_have_their_codes(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_to_exit(command)
    line = capsys.readouterr().err
    assert ended.value.code == code and " -> " in line and ("bug in lwfed" in line) == (code == 1)


def test_a_kill_or_a_full_memory_may_be_tried_again_and_a_bad_spec_not() -> None:
    assert {10, 11, 14} <= FINAL_CODES
    assert not FINAL_CODES & {1, 12, 16, 17, 18, 137, -9, 143}


@pytest.mark.parametrize(
    ("code", "name"),
    [(0, "success"), (11, "bad data"), (-9, "killed by signal 9"), (137, "killed by signal 9"), (77, "exit code 77")],
)
def test_exit_codes_are_named(code: int, name: str) -> None:
    assert exit_name(code) == name
