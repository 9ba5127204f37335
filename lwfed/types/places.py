"""What the system says of a place that cannot be written or opened, as an error with its exit code."""

from __future__ import annotations

import errno

from lwfed.types.errors import DiskFullError, LwfedError, OutOfMemoryError, UnreachableError

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "no quota left", errno.EFBIG: "no larger file is allowed"}
_CLOSED = frozenset({errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
_GONE = frozenset({errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.EINVAL})


def place_error(error: OSError, *, where: str, full: str, closed: str, gone: bool = True) -> LwfedError | None:
    """Returns the error of a place, or None if the system's error has another cause.

    Args:
        error: The system's error.
        where: The place, in words.
        full: The remedy where there is no room. A limit on files' sizes has its own.
        closed: The remedy where the place cannot be used.
        gone: Whether a place that is not there, or is something else, is the user's.
    """
    number = error.errno
    if number == errno.ENOMEM:
        return OutOfMemoryError(f"no memory left in {where}", remedy="give it more memory")
    if number in _FULL:
        limit = "raise the limit on the size of files (`ulimit -f unlimited`)"
        return DiskFullError(f"{_FULL[number]} in {where}", remedy=limit if number == errno.EFBIG else full)
    if number in _CLOSED or (gone and number in _GONE):
        return UnreachableError(f"cannot use {where}: {error.strerror}", remedy=closed)
    return None
