"""The folder in which a run's clients keep files between rounds: marking it as in use, and removing old runs' folders.

Runs' folders are next to each other on a volume, and a client is not notified when a run ends. So a client that begins
a round marks its own run's folder and removes folders whose mark is old. It touches nothing else on the volume.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lwfed import ranks
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import LwfedError

MARK = ".lwfed-run.json"
"""File in a run's folder with the run's id and its coordinator's last beat; its age is the folder's time unused."""
UNUSED_S = 14 * 24 * 3600.0
"""Seconds after which an unused folder is removed; long, because a resumed run may need its residuals."""


def maintain_folder(task: ClientTask, *, store: Store, marked: bool = False) -> str | None:
    """Marks the folder of a task's run, and removes other runs' folders next to it that have long been unused.

    The folder of an active run stays even if no client on this volume was sampled for that long: its coordinator's beat
    in the store has changed since the folder was marked.

    Args:
        task: The client, the run and the folder; does nothing if there is no folder.
        store: Holds the beats. For a run in another store, only the mark's age counts.
        marked: Whether this process has marked the folder in this round: only the client's part of it is left to see.

    Returns:
        Why the client cannot write to its part of the folder; None if it can, or if there is no folder.
    """
    if task.place.cache is None or ranks.rank():
        return None
    own = Path(task.place.cache)
    if marked:
        return _write_problem(own / task.client)
    with suppress(LwfedError, OSError):
        own.mkdir(parents=True, exist_ok=True)
        _write_mark(own / MARK, run_id=task.run_id, beat=_beat_of(task.run_id, store))
    for mark in own.parent.glob(f"*/{MARK}"):
        with suppress(OSError):  # another client may remove it at the same time
            unused_s = time.time() - mark.stat().st_mtime
            if mark.parent != own and unused_s > UNUSED_S and not _is_active(mark, store):
                _remove(mark)
    return _write_problem(own / task.client)


def _write_problem(folder: Path) -> str | None:
    """Returns why a folder cannot be written, naming the current user and the folder's owner; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror or error}{_ownership(folder, error)}"
    return None


def _ownership(folder: Path, error: OSError) -> str:
    """Describes the owner of the nearest existing folder, if permissions are what prevents writing."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return ""
    there = next((path for path in (folder, *folder.parents) if _stat(path) is not None), Path("/"))
    found = there.stat()
    groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    return (
        f" for user {os.geteuid()} of groups {groups}; {there} belongs to user {found.st_uid} and group "
        f"{found.st_gid}, mode {found.st_mode & 0o7777:04o} -> let that user write there: kubernetes.fs_group does so "
        f"on a claim's disk, not on host_path or NFS"
    )


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def _is_active(mark: Path, store: Store) -> bool:
    """Returns whether a run's beat has changed since its mark, and then renews the mark.

    Also returns True if the store cannot be read.
    """
    try:
        values = json.loads(mark.read_text(encoding="utf-8"))
        run_id, noted = values["run_id"], values["beat"]
    except (OSError, ValueError, KeyError, TypeError):
        run_id = noted = None
    try:
        beat = _beat_of(run_id, store)
        if beat is not None and beat != noted:
            _write_mark(mark, run_id=run_id, beat=beat)
            return True
    except (LwfedError, OSError):
        return True
    return False


def _beat_of(run_id: str | None, store: Store) -> dict[str, Any] | None:
    return None if run_id is None else store.read_ref(paths.heartbeat(run_id))


def _write_mark(mark: Path, *, run_id: str | None, beat: dict[str, Any] | None) -> None:
    mark.write_text(json.dumps({"run_id": run_id, "beat": beat}), encoding="utf-8")


def _remove(mark: Path) -> None:
    """Removes a run's folder, its mark last, so that a folder left by a killed process is found again."""
    for path in mark.parent.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path != mark:
            path.unlink(missing_ok=True)
    shutil.rmtree(mark.parent, ignore_errors=True)
