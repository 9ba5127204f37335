"""A run's folder where its clients keep things between rounds: marked as in use, and old runs' folders removed.

On a volume, runs' folders lie side by side, and nobody tells a client that a run is over. So a client that begins a
round marks its own run's folder and removes those that bear an old mark. Nothing else on the volume is touched.
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
"""In a run's folder: which run, and its coordinator's last beat. Its age is how long the folder is unused."""
UNUSED_S = 14 * 24 * 3600.0
"""Seconds after which an unused folder goes; long, since a run that is taken up again may need its residuals."""


def tend_folder(task: ClientTask, *, store: Store) -> str | None:
    """Marks the folder of a task's run, and removes other runs' folders beside it that are long unused.

    The folder of a run that goes on stays, even if the clients of this volume were not drawn for so long: its
    coordinator's beat in the store has changed since its mark.

    Args:
        task: Which client and run, and where the folder is; without one nothing is done.
        store: Holds the beats. A run with another store goes by its mark alone.

    Returns:
        Why the client cannot write to its part of the folder; None where it can, or has none.
    """
    if task.place.cache is None or ranks.rank():
        return None
    own = Path(task.place.cache)
    with suppress(LwfedError, OSError):
        own.mkdir(parents=True, exist_ok=True)
        _write_mark(own / MARK, run_id=task.run_id, beat=_beat_of(task.run_id, store))
    for mark in own.parent.glob(f"*/{MARK}"):
        with suppress(OSError):  # another client may remove it at the same time
            unused_s = time.time() - mark.stat().st_mtime
            if mark.parent != own and unused_s > UNUSED_S and not _goes_on(mark, store):
                _remove(mark)
    return _why_not_written(own / task.client)


def _why_not_written(folder: Path) -> str | None:
    """Says why a folder cannot be written: who we are, and whose it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror or error}{_whose(folder, error)}"
    return None


def _whose(folder: Path, error: OSError) -> str:
    """Says of the nearest folder that is there whose it is, where that is what forbids writing."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return ""
    there = next((path for path in (folder, *folder.parents) if _stat(path) is not None), Path("/"))
    found = there.stat()
    groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    return (
        f" for user {os.geteuid()} of groups {groups}; {there} belongs to user {found.st_uid} and group "
        f"{found.st_gid}, mode {found.st_mode & 0o7777:04o} -> let that user write there: kubernetes.fs_group does so "
        f"on disks of a claim, not on host_path and NFS"
    )


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def _goes_on(mark: Path, store: Store) -> bool:
    """Whether a run has beaten since its mark, which is then renewed; yes, too, where the store does not tell."""
    try:
        told = json.loads(mark.read_text(encoding="utf-8"))
        run_id, noted = told["run_id"], told["beat"]
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
    """Removes a run's folder, the mark last: what a killed process leaves is found again."""
    for path in mark.parent.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path != mark:
            path.unlink(missing_ok=True)
    shutil.rmtree(mark.parent, ignore_errors=True)
