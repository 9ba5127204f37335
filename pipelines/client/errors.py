"""What went wrong between us and Kubeflow Pipelines, in one line with a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lwfed.types.errors import LwfedError, NotFoundError, SpecError, UnreachableError

LONGEST = 600
"""Characters of a server's message that are passed on."""

TOKEN_REMEDY = "give --token-file, --existing-token-env or --cookies of someone who may, and --namespace of a profile"
PORT_FORWARD = (
    "check --endpoint; for a cluster's own: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80, "
    "then --endpoint http://localhost:8080"
)


class RefusedError(LwfedError):
    """Kubeflow Pipelines will not do it.

    Args:
        problem: What is wrong.
        remedy: What to do.
        status: The HTTP status.
    """

    def __init__(self, problem: str, *, remedy: str = "", status: int = 0) -> None:
        super().__init__(problem, remedy=remedy)
        self.status = status


def explained(error: Exception, *, endpoint: str, about: str) -> LwfedError:
    """Turns what a call raised into an error that a user can act on.

    Args:
        error: Of the generated API, of the connection, or of reading an answer that is no API's.
        endpoint: The server.
        about: What was asked for.

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
        said = str(getattr(cause, "strerror", None) or _short(str(cause)) or type(cause).__name__)
        return UnreachableError(f"{endpoint} does not answer: {said.lower()}", remedy=PORT_FORWARD)
    return no_api(endpoint)


def no_api(endpoint: str) -> LwfedError:
    """Says that something else lives at an address."""
    return NotFoundError(
        f"at {endpoint} there is no API of Kubeflow Pipelines 2",
        remedy="on a full Kubeflow the address ends in /pipeline, and asks for --cookies or a token",
    )


def message_of(body: Any) -> str:
    """Finds the sentence in an answer: the API's, the upload's, or plain text; a web page has none."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict):
        said = (values.get(key) for key in ("message", "error_message", "error"))
        return _short(next((text for text in said if text and isinstance(text, str)), ""))
    return "" if "<" in text[:200] else _short(text)


def _of_status(status: int, said: str, *, endpoint: str, about: str) -> LwfedError:
    tail = f": {said}" if said else ""
    if status == 401 or "there is no user identity" in said:
        return UnreachableError(f"{endpoint} does not know who asks ({status}){tail}", remedy=TOKEN_REMEDY)
    if status == 403:
        return UnreachableError(f"{endpoint} forbids {about} ({status}){tail}", remedy=TOKEN_REMEDY)
    if status == 404:
        return NotFoundError(f"{endpoint} does not know {about}{tail}", remedy="check the id, and --namespace")
    if status in (502, 503, 504):
        return UnreachableError(f"{endpoint} does not answer ({status}){tail}", remedy="try again in a minute")
    if 300 <= status < 400:
        return UnreachableError(
            f"{endpoint} sends us elsewhere ({status}), most likely to a login",
            remedy="give the address it sends to, --cookies of a session in a browser, or a token",
        )
    if status == 400 and "parameter" in said:
        return SpecError(f"{endpoint} refuses {about}{tail}", remedy="submit with the lwfed that compiled the pipeline")
    verb = "refuses" if status in (400, 409, 412) else "failed at"
    return RefusedError(f"{endpoint} {verb} {about} ({status}){tail}", status=status)


def _short(text: str) -> str:
    """Puts a message on one line; the API says the same thing several times over, each inside the last."""
    line = " ".join(text.split())
    parts: list[str] = []
    for part in re.split(r"(?<=[a-z.)\]'\"]): ", line):
        if part.rstrip(".") not in [known.rstrip(".") for known in parts]:
            parts.append(part)
    line = ": ".join(parts)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what caused it, down to the operating system's own, or to what we were handling then."""
    while error is not None and not isinstance(error, LwfedError):
        yield error
        error = error.__cause__ or error.__context__
