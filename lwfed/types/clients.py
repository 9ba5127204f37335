"""Names of clients: `client-000`, `client-001` ... and ranges of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from lwfed.types.errors import SpecError

RANGE = ".."


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Returns the clients' ids: `client-000`, `client-001` ..."""
    width = max(3, len(str(num_clients - 1)))
    return tuple(f"client-{n:0{width}d}" for n in range(num_clients))


def expand_clients(named: Iterable[str], *, known: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns the clients that a spec names, in the order of `known`.

    Args:
        named: Ids and ranges, such as `client-003` and `client-005..client-009` (both ends included).
        known: The ids of all clients, in order.
        where: The key that names them, for messages.

    Raises:
        SpecError: A client is not known or is named twice, or a range runs backwards.
    """
    order = {client: n for n, client in enumerate(known)}
    found = list[str]()
    ids = tuple(order)
    for name in named:
        first, *last = re.split(re.escape(RANGE), name, maxsplit=1)
        ends = [first, *last]
        for end in ends:
            if end not in order:
                known_ids = ids[0] if len(ids) == 1 else f"{ids[0]}{RANGE}{ids[-1]}"
                raise SpecError(f"`{where}` names {end!r}, which is no client", remedy=f"the clients are {known_ids}")
        if order[ends[-1]] < order[first]:
            raise SpecError(f"`{where}`: {name} runs backwards", remedy=f"write {ends[-1]}{RANGE}{first}")
        found += ids[order[first] : order[ends[-1]] + 1]
    twice = [client for client, count in Counter(found).items() if count > 1]
    if twice:
        raise SpecError(f"`{where}` names {twice[0]} twice", remedy="name each client once")
    return tuple(sorted(found, key=order.__getitem__))
