"""Who may do what in a bucket: a client reads what is everybody's and writes its own updates, and nothing else.

`*` in a policy matches slashes too, so fixed lengths are spelt with `?`: a stage's key has 64 characters and a round's
number three or four. A client's folder ends in a slash, so that client-1 cannot write what is client-10's.
"""

from __future__ import annotations

import re
from typing import Any

from lwfed.types.errors import SpecError

STAGE = "stages/" + "?" * 64
ROUNDS = (f"{STAGE}/rounds/???", f"{STAGE}/rounds/????")

EVERYBODYS = (
    "blocks/*", "data/*", "heartbeats/*", "jobs/*", "specs/*", "runs/*/run.json",
    f"{STAGE}/plan.json", f"{STAGE}/checkpoint.json",
    *(f"{folder}/{name}.json" for folder in ROUNDS for name in ("round", "checkpoint")),
)  # fmt: skip
"""What every client reads: the global model, plans and tasks; no update of another client."""

Policy = dict[str, Any]


def split_uri(uri: str) -> tuple[str, str]:
    """Returns bucket and prefix of `s3://bucket/prefix`; the prefix is empty or ends in a slash. Raises SpecError."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not uri.startswith("s3://") or not bucket or set(bucket + prefix) & set("*?$\"'\\ "):
        raise SpecError(f"{uri} names no bucket", remedy="name it s3://bucket/prefix")
    return bucket, f"{prefix}/" if prefix else ""


def client_policy(uri: str, client: str, *, may_list: bool = False) -> Policy:
    """Returns the policy of one client.

    Args:
        uri: The store.
        client: Its id.
        may_list: Let it list the bucket's keys. AWS answers 403 and not 404 for a missing object to those who may not;
            MinIO needs no such right.

    Raises:
        SpecError: The id could match another client's folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", client):
        raise SpecError(f"`{client}` is no client's id", remedy="letters, digits, dots, dashes and underscores")
    bucket, prefix = split_uri(uri)
    own = [f"{folder}/updates/{client}/*" for folder in ROUNDS] + [f"runs/*/clients/{client}/*"]

    def named(patterns: tuple[str, ...] | list[str]) -> list[str]:
        return [f"arn:aws:s3:::{bucket}/{prefix}{pattern}" for pattern in patterns]

    statements: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": named([*EVERYBODYS, *own])},
        {
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": named(own),
        },
        # `*` for the run could reach into another client's folder
        {"Effect": "Deny", "Action": ["s3:PutObject"], "Resource": named([f"runs/*/*/clients/{client}/*"])},
    ]
    if may_list:
        statements.append({"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]})
    return {"Version": "2012-10-17", "Statement": statements}


def server_policy(uri: str) -> Policy:
    """Returns the policy of coordinator and server: all that is below the store's prefix."""
    bucket, prefix = split_uri(uri)
    listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]}
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": [
                    "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
                    "s3:ListMultipartUploadParts",
                ],
                "Resource": [f"arn:aws:s3:::{bucket}/{prefix}*"],
            },
            listing,
        ],
    }  # fmt: skip
