"""Turns errors of Kubeflow Pipelines into lwfed's errors: one line, with a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lwfed.types.errors import LwfedError, NotFoundError, SpecError, UnreachableError

LONGEST = 600
"""Longest part of a server's message to show, in characters."""

TOKEN_REMEDY = "pass --token-file, --existing-token-env or --cookies of a permitted user, and --namespace of a profile"
PORT_FORWARD = (
    "check --endpoint; for a server inside a cluster: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80, "
    "then --endpoint http://localhost:8080"
)


class RefusedError(LwfedError):
    """Kubeflow Pipelines refuses a request.

    Args:
        problem: What is wrong.
        remedy: What to do about it.
        status: The HTTP status.
    """

    def __init__(self, problem: str, *, remedy: str = "", status: int = 0) -> None:
        super().__init__(problem, remedy=remedy)
        self.status = status


def lwfed_error(error: Exception, *, endpoint: str, about: str) -> LwfedError:
    """Converts an exception of a call into an error that users can act on.

    Args:
        error: The exception: of the generated API, of the connection, or of an answer that is not the API's.
        endpoint: The server.
        about: What was requested.

    Returns:
        The error to raise.
    """
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return _of_status(status, message_of(getattr(error, "body", None)), endpoint=endpoint, about=about)
    if status == 0 or any("SSL" in type(cause).__name__ for cause in _causes(error)):
        return UnreachableError(
            f"{endpoint} is not trusted: {_short(str(getattr(error, 'reason', '') or error))}",
            remedy="name the file of its authority with --ssl-ca-cert",
        )
    if isinstance(error, OSError) or type(error).__module__.startswith("urllib3"):
        *_, cause = (error, *(cause for cause in _causes(error) if isinstance(cause, OSError)))
        reason = str(getattr(cause, "strerror", None) or _short(str(cause)) or type(cause).__name__)
        return UnreachableError(f"{endpoint} does not answer: {reason.lower()}", remedy=PORT_FORWARD)
    return not_kfp_error(endpoint)


def not_kfp_error(endpoint: str) -> LwfedError:
    """Returns the error for an address that is not Kubeflow Pipelines'."""
    return NotFoundError(
        f"{endpoint} is not an API of Kubeflow Pipelines 2",
        remedy="on a full Kubeflow the URL ends in /pipeline, and needs --cookies or a token",
    )


def message_of(body: Any) -> str:
    """Returns the message in an answer of the API or of an upload, or in plain text; empty for a web page."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict):
        found = (values.get(key) for key in ("message", "error_message", "error"))
        return _short(next((text for text in found if text and isinstance(text, str)), ""))
    return "" if "<" in text[:200] else _short(text)


def _of_status(status: int, message: str, *, endpoint: str, about: str) -> LwfedError:
    tail = f": {message}" if message else ""
    if status == 401 or "there is no user identity" in message:
        return UnreachableError(f"{endpoint} does not recognise the user ({status}){tail}", remedy=TOKEN_REMEDY)
    if status == 403:
        return UnreachableError(f"{endpoint} denies access to {about} ({status}){tail}", remedy=TOKEN_REMEDY)
    if status == 404:
        return NotFoundError(f"{endpoint} does not know {about}{tail}", remedy="check the id, and --namespace")
    if status in (502, 503, 504):
        return UnreachableError(f"{endpoint} does not answer ({status}){tail}", remedy="try again in a minute")
    if 300 <= status < 400:
        return UnreachableError(
            f"{endpoint} redirects ({status}), most likely to a login",
            remedy="pass the URL it redirects to, --cookies of a browser's session, or a token",
        )
    if status == 400 and "parameter" in message:
        return SpecError(f"{endpoint} refuses {about}{tail}", remedy="submit with the lwfed that compiled the pipeline")
    verb = "refuses" if status in (400, 409, 412) else "failed at"
    return RefusedError(f"{endpoint} {verb} {about} ({status}){tail}", status=status)


def _short(text: str) -> str:
    """Returns a message as one line without repetitions: the API nests the same message several times."""
    line = " ".join(text.split())
    parts: list[str] = []
    for part in re.split(r"(?<=[a-z.)\]'\"]): ", line):
        if part.rstrip(".") not in [known.rstrip(".") for known in parts]:
            parts.append(part)
    line = ": ".join(parts)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes and contexts, down to the operating system's own error."""
    while error is not None and not isinstance(error, LwfedError):
        yield error
        error = error.__cause__ or error.__context__
