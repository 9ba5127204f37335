"""Who works for whom: spreads a call's clients over the agents of a pool, and moves those that wait for one too long.

Pure: it decides by names and by what agents said, and never changes a result, since any agent computes the same update.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def spread(
    clients: Sequence[str], *, places: Sequence[str], ready: Collection[str], served: Mapping[str, str]
) -> dict[str, list[str]]:
    """Spreads clients over as few places as let all of them work at once: those that are ready first.

    A client goes to the place that served it last, which has its data open, unless others would wait for it there.

    Args:
        clients: The clients.
        places: Names of the pool's places, at least one.
        ready: Those whose agents are there.
        served: Client -> the place that served it last.

    Returns:
        Place -> its clients, in turn; only places with clients.
    """
    wanted = {served[client] for client in clients if client in served}
    order = sorted(places, key=lambda place: (place not in ready, place not in wanted, places.index(place)))
    chosen = order[: len(clients)]
    most = -(-len(clients) // len(chosen)) if chosen else 0
    work: dict[str, list[str]] = {place: [] for place in chosen}
    waiting = []
    for client in clients:
        place = served.get(client)
        if place in work and len(work[place]) < most:
            work[place].append(client)
        else:
            waiting.append(client)
    for client in waiting:
        place = min(chosen, key=lambda place: (len(work[place]), chosen.index(place)))
        work[place].append(client)
    return {place: named for place, named in work.items() if named}


def moved(
    work: Mapping[str, Sequence[str]], *, open_clients: Collection[str], busy: Mapping[str, str], free: Sequence[str]
) -> dict[str, list[str]]:
    """Moves clients that nobody works for yet to agents that have nothing left to do.

    Args:
        work: Agent -> its clients, in turn.
        open_clients: The clients whose tasks have not ended.
        busy: Agent -> the client that it works for now.
        free: Agents that are there and have no open clients.

    Returns:
        Agent -> its clients, in turn; equal to `work` if nothing moves.
    """
    changed = {agent: list(clients) for agent, clients in work.items()}
    queued = {
        agent: [client for client in clients if client in open_clients and client != busy.get(agent)]
        for agent, clients in changed.items()
        if agent not in free
    }
    for helper in free:
        agent = max(queued, key=lambda agent: (len(queued[agent]) + (agent in busy), agent), default=None)
        if agent is None or not queued[agent]:
            break
        client = queued[agent].pop()
        changed[agent].remove(client)
        changed.setdefault(helper, []).append(client)
    return {agent: clients for agent, clients in changed.items() if clients}
