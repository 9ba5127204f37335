"""Checkpoints: small, readable manifests that name the block of every unit, and serve as commit markers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lwfed.store.manifest import Block
from lwfed.store.protocol import Store
from lwfed.store.refs import damaged, read_object
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import unit_of


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights and its server optimiser's state, by reference.

    Attributes:
        blocks: Unit -> block of weights.
        server: Unit -> block of the server's state: its optimiser's state and its rounding residuals; may be empty.
        change: Unit -> block of the published change: added to the weights of the round before, it yields these
            weights bit for bit. It is redundant, so no part of the digest; empty if no change was published.
    """

    blocks: dict[str, Block]
    server: dict[str, Block] = field(default_factory=dict)
    change: dict[str, Block] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 of canonical JSON {tensor name: tensor digest}; independent of time."""
        return digest_of(
            {
                prefix + name: digest
                for prefix, blocks in (("", self.blocks), ("server:", self.server))
                for block in blocks.values()
                for name, (digest, _) in block.tensors.items()
            }
        )

    @property
    def in_place(self) -> bool:
        """Whether every tensor lies in the block of its unit."""
        every = (*self.blocks.items(), *self.server.items(), *self.change.items())
        return all(unit_of(name) == unit for unit, block in every for name in block.tensors)

    def all_blocks(self) -> Iterator[Block]:
        """Yields the blocks of weights, server state and published change."""
        yield from self.blocks.values()
        yield from self.server.values()
        yield from self.change.values()

    def to_values(self) -> dict[str, Any]:
        """Returns JSON values."""
        values: dict[str, Any] = {
            "digest": self.digest,
            "blocks": {unit: block.to_values() for unit, block in sorted(self.blocks.items())},
            "server": {unit: block.to_values() for unit, block in sorted(self.server.items())},
        }
        if self.change:
            values["change"] = {unit: block.to_values() for unit, block in sorted(self.change.items())}
        return values

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Checkpoint:
        """Parses JSON values. Raises CheckpointError if they do not match their digest."""
        try:
            checkpoint = Checkpoint(
                blocks={unit: Block.from_values(item) for unit, item in values["blocks"].items()},
                server={unit: Block.from_values(item) for unit, item in values["server"].items()},
                change={unit: Block.from_values(item) for unit, item in values.get("change", {}).items()},
            )
            named = values["digest"]
        except KeyError as error:
            raise CheckpointError(f"a checkpoint's manifest lacks {error}", remedy="train again with --fresh") from None
        except (TypeError, AttributeError, LookupError) as error:
            raise CheckpointError(f"a checkpoint's manifest is damaged: {error}", remedy="train with --fresh") from None
        if checkpoint.digest != named or not checkpoint.in_place:
            raise CheckpointError(
                f"the manifest of checkpoint {str(named)[:12]} is damaged", remedy="train with --fresh"
            )
        return checkpoint


def read_checkpoint(store: Store, key: str) -> Checkpoint | None:
    """Reads the checkpoint in a ref; None if it is not committed."""
    values = read_object(store, key, digest=str, blocks=dict, server=dict)
    try:
        return None if values is None else Checkpoint.from_values(values)
    except CheckpointError as error:
        raise damaged(key, error.problem) from None
