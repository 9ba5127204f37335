"""Access policies of a bucket: a client reads the shared objects, writes its own updates and beats, and nothing else.

`*` in a policy also matches slashes, so parts of fixed length are written with `?`: a stage's key has 64 characters and
a round's number three or four. A client's folder ends in a slash, so that client-1 cannot write to client-10's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lwfed.store.paths import AGENT_RUNS
from lwfed.types.errors import SpecError

SERVER = "server"
STAGE = "stages/" + "?" * 64
ROUNDS = (f"{STAGE}/rounds/???", f"{STAGE}/rounds/????")

SHARED = (
    "blocks/*", "data/*", "heartbeats/*", "jobs/*", "specs/*", "runs/*/run.json", f"{AGENT_RUNS}*",
    f"{STAGE}/plan.json", f"{STAGE}/checkpoint.json",
    *(f"{folder}/{name}.json" for folder in ROUNDS for name in ("round", "checkpoint")),
)  # fmt: skip
"""Objects that every client may read: the global model, plans and tasks, but no update or beat of another client."""

UPLOADS = ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
"""Actions on the uploads of large objects."""

Policy = dict[str, Any]


def split_uri(uri: str) -> tuple[str, str]:
    """Returns bucket and prefix of `s3://bucket/prefix`; the prefix is empty or ends in a slash. Raises SpecError."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not uri.startswith("s3://") or not bucket or set(bucket + prefix) & set("*?$\"'\\ "):
        raise SpecError(f"{uri} names no bucket", remedy="write it as s3://bucket/prefix")
    return bucket, f"{prefix}/" if prefix else ""


def client_policy(uri: str, client: str, *, may_list: bool = False) -> Policy:
    """Returns the policy of one client.

    Args:
        uri: The store.
        client: Its id.
        may_list: Whether it may list all keys of the bucket, and not only the runs that want agents. Without this
            right, AWS answers 403 instead of 404 for a missing object; MinIO does not need it.

    Raises:
        SpecError: The id could match another client's folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", client):
        raise SpecError(f"`{client}` is not a client id", remedy="use letters, digits, dots, dashes and underscores")
    bucket, prefix = split_uri(uri)
    arn = f"arn:aws:s3:::{bucket}"
    below = f"{arn}/{prefix}"
    shared = [below + pattern for pattern in SHARED]
    own = [
        *(f"{below}{folder}/updates/{client}/*" for folder in ROUNDS),
        f"{below}runs/*/clients/{client}/*",
        f"{below}agents/beats/*/{client}.json",
    ]
    statements = [
        _statement("Allow", ["s3:GetObject"], [*shared, *own]),
        _statement("Allow", ["s3:PutObject", *UPLOADS], own),
        # `*` for the run could match another client's folder
        _statement(
            "Deny", ["s3:PutObject"], [f"{below}runs/*/*/clients/{client}/*", f"{below}agents/beats/*/*/{client}.json"]
        ),
    ]
    listing = _statement("Allow", ["s3:ListBucket"], [arn])
    statements.append(listing if may_list else listing | _below(f"{prefix}{AGENT_RUNS}"))
    return {"Version": "2012-10-17", "Statement": statements}


def server_policy(uri: str) -> Policy:
    """Returns the policy of the coordinator and the server: full access below the store's prefix."""
    bucket, prefix = split_uri(uri)
    arn = f"arn:aws:s3:::{bucket}"
    everything = _statement(
        "Allow", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", *UPLOADS], [f"{arn}/{prefix}*"]
    )
    listing = _statement("Allow", ["s3:ListBucket"], [arn])
    return {"Version": "2012-10-17", "Statement": [everything, listing | _below(prefix) if prefix else listing]}


def policies_of(uri: str, clients: Iterable[str]) -> dict[str, Policy]:
    """Returns the policy of the server, and of each client by its id. Raises SpecError as `client_policy` does."""
    return {SERVER: server_policy(uri), **{client: client_policy(uri, client) for client in clients}}


def _statement(effect: str, actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Effect": effect, "Action": actions, "Resource": resources}


def _below(prefix: str) -> dict[str, Any]:
    """Returns a condition for listings: only keys that start with a prefix."""
    return {"Condition": {"StringLike": {"s3:prefix": [f"{prefix}*"]}}}
