"""What `lwfed store init` hands out: a Secret of Kubernetes per user, or a folder per silo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lwfed.types.errors import LwfedError, SpecError

if TYPE_CHECKING:
    from lwfed.agent.enrol import Silo
    from lwfed.store.provision import User

SECRET_NAME = "lwfed-store"


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """A silo's folder.

    Attributes:
        client: Its client.
        folder: The folder.
        kept: Files in it that stay and differ from what would have been written.
    """

    client: str
    folder: str
    kept: tuple[str, ...]


def enrol_silos(
    users: Sequence[User], folder: Path, *, known: Mapping[str, str], rotate: bool, make: Callable[..., Silo]
) -> list[Enrolled]:
    """Writes a folder for each client that is not revoked.

    Args:
        users: The clients' users.
        folder: The folder of these folders.
        known: Client -> its secret, where an earlier call wrote it.
        rotate: Replace the credentials of those that got new ones.
        make: Makes a silo of its `client`, `access_key` and `secret_key`.

    Raises:
        LwfedError: A folder cannot be written.
        SpecError: A client's secret is known neither to the server, which never shows it, nor from a folder.
    """
    from lwfed.agent.enrol import silo_files, write_silo

    done, unknown = [], []
    for user in users:
        secret = user.secret_key or known.get(user.who)
        if user.revoked:
            continue
        if secret is None:
            unknown.append(user.who)
            continue
        silo = make(client=user.who, access_key=user.access_key, secret_key=secret)
        own = folder / user.who
        kept = write_silo(own, silo_files(silo), rotate=rotate and user.secret_key is not None)
        done.append(Enrolled(client=user.who, folder=str(own), kept=tuple(kept)))
    if unknown:
        raise SpecError(
            f"{', '.join(unknown)}: exists already, and its secret is not in {folder}",
            remedy="repeat with --rotate and --client for each: it gets a new secret, and the old one stops working",
        )
    return done


def secret_name(who: str) -> str:
    """Returns the name of a user's Secret."""
    return f"{SECRET_NAME}-{who}".lower().replace("_", "-")


def secret(user: User, shared: dict[str, str], *, namespace: str) -> dict[str, Any]:
    """Returns a Kubernetes Secret, for use as environment or mounted at LWFED_S3_SECRET_DIR."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(user.who),
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "lwfed"},
        },
        "type": "Opaque",
        "stringData": {"AWS_ACCESS_KEY_ID": user.access_key, "AWS_SECRET_ACCESS_KEY": user.secret_key, **shared},
    }


def known_secrets(folder: Path) -> dict[str, str]:
    """Reads the secrets that an earlier call wrote to a folder: client -> secret."""
    known = {}
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
        try:
            known[path.stem] = str(
                yaml.safe_load(path.read_text(encoding="utf-8"))["stringData"]["AWS_SECRET_ACCESS_KEY"]
            )
        except (KeyError, TypeError, yaml.YAMLError):
            raise SpecError(f"{path} is not a Secret of lwfed", remedy="name another folder with --output") from None
    return known


def write_secrets(folder: Path, manifests: dict[str, dict[str, Any]]) -> None:
    """Writes files that only their owner can read."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for who, manifest in manifests.items():
            path = folder / f"{who}.yaml"
            path.touch(mode=0o600)
            path.chmod(0o600)
            path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise LwfedError(
            f"the secrets cannot be written to {folder}: {error.strerror}",
            remedy="name another folder and repeat with --rotate: secrets are shown only once",
        ) from error
