"""Which update of each client counted last: the coordinator writes it down, and clients' residuals go by it."""

from __future__ import annotations

from typing import Any

from lwfed.store import paths
from lwfed.store.protocol import Store


def counted_until(key: str, server_round: int, *, store: Store) -> dict[str, dict[str, Any]]:
    """Returns the round and digest of each client's last accepted update in earlier rounds of the stage.

    Args:
        key: The stage.
        server_round: The round about to begin.
        store: Where the rounds before it are.
    """
    if server_round == 1:
        return {}
    before = store.read_ref(paths.round_task(key, server_round - 1)) or {}
    accepted = store.read_ref(paths.accepted(key, server_round - 1)) or {"clients": {}}
    news = {c: {"round": server_round - 1, "digest": item["digest"]} for c, item in accepted["clients"].items()}
    return {**before.get("counted", {}), **news}
