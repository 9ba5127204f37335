"""Who asks an S3 server: its address and credentials, from a mounted secret."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lwfed import environment
from lwfed.types.errors import SpecError

FILES: dict[str, tuple[str, ...]] = {
    "access_key": ("accesskey", "AWS_ACCESS_KEY_ID", "access_key", "username"),
    "secret_key": ("secretkey", "AWS_SECRET_ACCESS_KEY", "secret_key", "password"),
    "session_token": ("sessiontoken", "AWS_SESSION_TOKEN"),
    "endpoint": ("endpoint", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("region", "AWS_REGION", "AWS_DEFAULT_REGION"),
}
"""Setting -> names of its file in a mounted secret; `ca.crt` is the authority of the server's certificate."""


@dataclass(frozen=True)
class Access:
    """A server's address and credentials; None: from botocore's own chain (environment, profile, platform)."""

    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    endpoint: str | None = None
    region: str | None = None
    ca_bundle: str | None = None


def read_access() -> Access:
    """Reads the mounted secret, if one is set. Raises SpecError if it lacks its keys."""
    folder = environment.s3_secret_folder()
    if folder is None:
        return Access()
    found = {name: _first(folder, files) for name, files in FILES.items()}
    bundle = folder / "ca.crt"
    access = Access(**found, ca_bundle=str(bundle) if bundle.is_file() else None)
    if access.access_key is None or access.secret_key is None:
        raise SpecError(
            f"the folder {folder} (LWFED_S3_SECRET_DIR) has no files accesskey and secretkey",
            remedy="mount a secret with these keys there, or with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return access


def _first(folder: Path, names: Collection[str]) -> str | None:
    for name in names:
        with suppress(OSError):
            if text := (folder / name).read_text(encoding="utf-8").strip():
                return text
    return None
