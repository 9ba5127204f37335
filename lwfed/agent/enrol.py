"""What a silo gets to take part: the files of a folder for the machine on which its agent will run.

The policy is written from `lwfed.agent.policy.Policy`, so that it has every key; its owner edits it, and nothing
overwrites it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from textwrap import wrap

import yaml

from lwfed import __version__
from lwfed.agent.policy import Policy
from lwfed.agent.silo_pages import ENVIRONMENT, README, UNIT
from lwfed.types.errors import LwfedError

HOME = "/etc/lwfed"
"""Where the silo's folder is installed, as its files say; its owner may move it."""
STATE = "/var/lib/lwfed"
"""Where its agent keeps files between rounds."""
SECRET = "secret"
"""The part of the folder with the credentials, for `LWFED_S3_SECRET_DIR`."""
PRIVATE = ("agent.env", f"{SECRET}/")
"""What only the owner of the files may read."""
WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Silo:
    """One client, and how its agent reaches the store.

    Attributes:
        client: Its id.
        store: The store's URI.
        endpoint: The server's URL, as the silo reaches it.
        access_key: The name of its user.
        secret_key: Its secret.
        authority: The certificate of the authority that signed the server's, as PEM; None: a public one.
    """

    client: str
    store: str
    endpoint: str
    access_key: str
    secret_key: str
    authority: str | None = None


def policy_text(policy: Policy) -> str:
    """Returns a policy as YAML, with a key's meaning above each key."""
    lines = ["# What this machine allows to the runs that ask its agent; read when the agent starts.", ""]
    values = policy.model_dump(mode="json")
    for name, field in Policy.fields().items():
        lines += [f"# {line}" for line in wrap(field.description or "", WIDTH - 2)]
        if name == "data":
            lines.append("# data: {coco: /data/coco}")
        value = values[name]
        is_plain = not isinstance(value, list | dict)
        lines.append(yaml.safe_dump({name: value}).rstrip() if is_plain else f"{name}: {json.dumps(value)}")
        lines.append("")
    return "\n".join(lines)


def silo_files(silo: Silo) -> dict[str, str]:
    """Returns the files of a silo's folder: path in it -> text."""
    place = {
        "client": silo.client,
        "store": silo.store,
        "endpoint": silo.endpoint,
        "home": f"{HOME}/{silo.client}",
        "state": f"{STATE}/{silo.client}",
        "version": __version__,
    }
    files = {
        "README.md": Template(README).substitute(place),
        "agent.yaml": policy_text(Policy(cache=place["state"])),
        "agent.env": Template(ENVIRONMENT).substitute(place),
        # `%` begins a specifier in a unit
        "lwfed-agent.service": Template(UNIT).substitute(place | {"store": silo.store.replace("%", "%%")}),
        f"{SECRET}/accesskey": f"{silo.access_key}\n",
        f"{SECRET}/secretkey": f"{silo.secret_key}\n",
        f"{SECRET}/endpoint": f"{silo.endpoint}\n",
    }
    if silo.authority is not None:
        files[f"{SECRET}/ca.crt"] = silo.authority
    return files


def secret_of(folder: Path) -> str | None:
    """Returns the secret that an earlier call wrote to a silo's folder; None if there is none."""
    try:
        return (folder / SECRET / "secretkey").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def write_silo(folder: Path, files: Mapping[str, str], *, rotate: bool) -> list[str]:
    """Writes a silo's files, except those that are there; the policy may have been edited.

    Args:
        folder: The silo's folder.
        files: Path in it -> text.
        rotate: Replace the credentials.

    Returns:
        The files that were there and differ from what would be written.

    Raises:
        LwfedError: The folder cannot be written.
    """
    kept = []
    try:
        for name, text in files.items():
            path = folder / name
            private = name.startswith(PRIVATE)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o755)
            if path.exists() and not (rotate and name.startswith(f"{SECRET}/")):
                if path.read_text(encoding="utf-8") != text:
                    kept.append(name)
                continue
            _write_whole(path, text, mode=0o600 if private else 0o644)
    except OSError as error:
        raise LwfedError(
            f"{folder} cannot be written: {error.strerror}",
            remedy="name another folder and repeat with --rotate: secrets are shown only once",
        ) from error
    return kept


def _write_whole(path: Path, text: str, *, mode: int) -> None:
    """Writes a file at once: an agent may read it at any time."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    part.rename(path)
