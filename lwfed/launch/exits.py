"""Turns every error into one line on standard error and a numbered exit code, and reads those of other processes."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable

from lwfed import environment
from lwfed.types.errors import LwfedError, OutOfMemoryError, SpecError, exit_name
from lwfed.types.places import place_error

INTERRUPTED = "interrupted -> committed work is kept; run the command again to continue"

_OF_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "without exception set",
    "without setting an exception",
)
"""What the loader of libraries, and C code that has no memory for an error, say."""
_MORE_MEMORY = "give it more memory, or raise the limit (`ulimit -v unlimited`)"


def run_to_exit(command: Callable[[], object]) -> None:
    """Runs this process's work; any error ends it with one line and one of `lwfed.types.errors.EXIT_CODES`."""
    environment.quiet()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII alone
    try:
        command()
    except LwfedError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end(INTERRUPTED, 130)
    except SystemExit as ended:
        if ended.code == 130:  # typer turns an interrupt into this
            _end(INTERRUPTED, 130)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _end_at_place(error)
        _unexpected(error)
    except (MemoryError, ImportError, SystemError) as error:
        words = str(error).lower()
        if isinstance(error, MemoryError) or any(text in words for text in _OF_MEMORY):
            small = OutOfMemoryError(f"no memory left: {error}" if words else "no memory left", remedy=_MORE_MEMORY)
            _end(str(small), small.exit_code)
        _unexpected(error)
    except Exception as error:
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # of `Path.expanduser`
            homeless = SpecError("a path starts with ~, and this user has no home", remedy="set HOME, or write it out")
            _end(str(homeless), homeless.exit_code)
        _unexpected(error)


def last_words(code: int, log: str, *, silent: str = "no message") -> str:
    """Returns why a process failed: the meaning of its exit code, and its last error in our format or its last line.

    Args:
        code: The exit code.
        log: What it wrote.
        silent: What to say if it wrote nothing.
    """
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f"{exit_name(code)}: {(errors or lines or [silent])[-1]}"


def _end_at_place(error: OSError) -> None:
    """Ends the process if a place or a limit of the system is the cause."""
    name = error.filename if isinstance(error.filename, str) else "a file"
    told = place_error(
        error,
        where=name,
        full="free some space and run it again to continue",
        closed="name another place, or make this one accessible",
        gone=False,
    )
    if told is not None:
        _end(str(told), told.exit_code)


def _unexpected(error: Exception) -> None:
    _end(f"{type(error).__name__}: {error} -> this is a bug in lwfed; LWFED_DEBUG=1 shows the traceback", 1)


def _end(message: str, code: int) -> None:
    if environment.debug():
        traceback.print_exc()
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.stderr.flush()
    sys.exit(code)
