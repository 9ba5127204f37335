"""Each client's last accepted update: the coordinator records it, and clients choose their residuals by it."""

from __future__ import annotations

from typing import Any

from lwfed.round.context import RoundContext
from lwfed.store import paths


def last_accepted(ctx: RoundContext) -> dict[str, dict[str, Any]]:
    """Returns the round and digest of each client's last accepted update in earlier rounds of the stage."""
    last = ctx.server_round - 1
    if not last:
        return {}
    before = ctx.store.read_ref(paths.round_task(ctx.key, last)) or {}
    accepted = ctx.store.read_ref(paths.accepted(ctx.key, last)) or {"clients": {}}
    newer = {client: {"round": last, "digest": item["digest"]} for client, item in accepted["clients"].items()}
    return {**before.get("counted", {}), **newer}
