"""Names of clients: `client-000`, `client-001` ...; ranges of them, both ends included; and patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

from lwfed.types.errors import SpecError

RANGE = ".."
WAYS = "ids, ranges such as client-005..client-009, or patterns such as client-00*"
"""How clients are named, for descriptions of keys."""


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Returns the clients' ids: `client-000`, `client-001` ..."""
    width = max(3, len(str(num_clients - 1)))
    return tuple(f"client-{n:0{width}d}" for n in range(num_clients))


def names_client(name: str, client: str) -> bool:
    """Returns whether an id, a range or a pattern names a client; ids of one run are equally long."""
    first, is_range, last = name.partition(RANGE)
    return first <= client <= last if is_range else fnmatchcase(client, name)


def expand_clients(named: Iterable[str], *, known: Iterable[str], where: str, of: int | None = None) -> tuple[str, ...]:
    """Returns the clients that a spec names, in the order of `known`.

    Args:
        named: Ids, ranges and patterns.
        known: The ids of the clients that take part, in order.
        where: The key that names them, for messages.
        of: Number of all clients, if not all take part.

    Raises:
        SpecError: A name is no client's, a client is named twice, or a range runs backwards.
    """
    ids = tuple(known)
    members = set(ids)
    found = list[str]()
    for name in named:
        first, is_range, last = name.partition(RANGE)
        for end in (first, last) if is_range else ():
            if end not in members:
                raise SpecError(f"`{where}` names {end!r}, which is no client", remedy=_known(ids, of=of))
        if is_range and last < first:
            raise SpecError(f"`{where}`: {name} runs backwards", remedy=f"write {last}{RANGE}{first}")
        clients = [name] if name in members else [client for client in ids if names_client(name, client)]
        if not clients:
            raise SpecError(f"`{where}` names {name!r}, which is no client", remedy=_known(ids, of=of))
        found += clients
    twice = [client for client, count in Counter(found).items() if count > 1]
    if twice:
        raise SpecError(f"`{where}` names {twice[0]} twice", remedy="name each client once")
    return tuple(sorted(found))


def _known(ids: tuple[str, ...], *, of: int | None) -> str:
    told = f"the clients are {ids[0]}{RANGE}{ids[-1]}" if len(ids) > 1 else f"the client is {ids[0]}"
    return told + (f"; by federation.eligible_fraction {len(ids)} of {of} take part" if of and of > len(ids) else "")
