"""Errors with a problem, a remedy and a numbered exit code: one table for the CLI, pods and docs."""

from __future__ import annotations


class LwfedError(Exception):
    """An error that a user can act on.

    Args:
        problem: What is wrong, in one line.
        remedy: What to do about it, in one line.
    """

    exit_code = 1
    name = "unexpected error"

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        self.problem, self.remedy = _printable(problem), _printable(remedy)
        super().__init__(f"{self.problem} -> {self.remedy}" if remedy else self.problem)


def _printable(text: str) -> str:
    """Returns text that no terminal takes for a command, and that every encoding can write."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


class SpecError(LwfedError, ValueError):
    """The experiment's description is wrong."""

    exit_code = 10
    name = "bad spec"


class DataError(LwfedError, ValueError):
    """The data are missing, unreadable or do not fit the spec."""

    exit_code = 11
    name = "bad data"


class CheckpointError(LwfedError):
    """A stored object is missing or its digest is wrong."""

    exit_code = 12
    name = "missing or corrupted checkpoint"


class QuorumError(LwfedError):
    """A round has fewer updates than `federation.min_fit_clients`."""

    exit_code = 13
    name = "round below quorum"


class DivergedError(LwfedError, ArithmeticError):
    """A loss is NaN or infinite."""

    exit_code = 14
    name = "training diverged"


class ResumeError(LwfedError, ValueError):
    """A run is resumed with another spec, other data or other code than it was started with."""

    exit_code = 15
    name = "resumed run differs"


class DiskFullError(LwfedError, OSError):
    """There is no space left on a disk that lwfed writes to."""

    exit_code = 16
    name = "no space left"


class UnreachableError(LwfedError, ConnectionError):
    """A store or server does not answer."""

    exit_code = 17
    name = "store or server unreachable"


class DeniedError(UnreachableError):
    """A store answers, and refuses these credentials or this machine's clock: waiting alone does not help."""


class OutOfMemoryError(LwfedError, MemoryError):
    """The device or the host has too little memory for a step."""

    exit_code = 18
    name = "out of memory"


class NotFoundError(LwfedError, LookupError):
    """There is no run, stage or preset of that name."""

    exit_code = 19
    name = "not found"


class CoordinatorGoneError(LwfedError):
    """The coordinator's heartbeat has stopped."""

    exit_code = 20
    name = "coordinator gone"


class NotStartedError(LwfedError):
    """No pod of a pipeline's run starts: the image, capacity or quota is missing."""

    exit_code = 21
    name = "nothing started in time"


class PolicyError(LwfedError):
    """An agent's policy forbids a task."""

    exit_code = 22
    name = "refused by the agent's policy"


class LateError(LwfedError):
    """A round went on without a client's update."""

    exit_code = 23
    name = "too late for its round"


class AgentError(LwfedError):
    """Another agent of the same client is at work."""

    exit_code = 24
    name = "another agent is at work"


KINDS: tuple[type[LwfedError], ...] = (
    SpecError, DataError, CheckpointError, QuorumError, DivergedError, ResumeError, DiskFullError, UnreachableError,
    OutOfMemoryError, NotFoundError, CoordinatorGoneError, NotStartedError, PolicyError, LateError,
    AgentError,
)  # fmt: skip

EXIT_CODES: dict[int, str] = {
    0: "success",
    1: LwfedError.name,
    2: "wrong command line",
    **{kind.exit_code: kind.name for kind in KINDS},
    130: "interrupted",
}
"""Exit code -> meaning. `lwfed --help` and docs/cli.md print this table."""

FINAL_CODES: frozenset[int] = frozenset({SpecError.exit_code, DataError.exit_code, DivergedError.exit_code})
"""Exit codes after which retrying the same work cannot help."""


SHARED_CODES: frozenset[int] = frozenset(
    {SpecError.exit_code, CheckpointError.exit_code, DiskFullError.exit_code, UnreachableError.exit_code}
)
"""Exit codes of a client whose cause is not specific to the client: they end the stage, whatever the quorum."""


def error_of(code: int, message: str) -> LwfedError:
    """Rebuilds the error of another lwfed process from its exit code and message."""
    problem, _, remedy = message.partition(" -> ")
    return next((kind for kind in KINDS if kind.exit_code == code), LwfedError)(problem, remedy=remedy)


def exit_name(code: int) -> str:
    """Returns the meaning of a process's exit code: lwfed's own, a signal, or the number."""
    if code in EXIT_CODES:
        return EXIT_CODES[code]
    if code < 0 or code > 128:
        return f"killed by signal {-code if code < 0 else code - 128}"
    return f"exit code {code}"
