"""A small table of pictures, texts and sounds in which some are missing, and the tiny experiment on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from tests.tables import write_jsonl

LACKS = ("", "audio", "", "text", "audio", "image")
"""What one row after the other lacks."""
AST = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 32,
    "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8,
}  # fmt: skip
AUDIO = f"model.encoders.audio={{family: ast, config: {AST}}}".replace("'", "")
SUPERVISED = "model.objective={kind: supervised, hidden: 12}"
OBJECTIVES = {"contrastive": (), "supervised": (SUPERVISED,)}
"""Objective -> overrides."""


def rows_of(root: Path, *, count: int = 30, lacks: Sequence[str] = LACKS) -> list[dict[str, Any]]:
    """Draws pictures and sounds, and returns rows of two classes and two sites; every fifth is for testing.

    Args:
        root: The folder.
        count: Number of rows.
        lacks: What one row after the other lacks, modalities joined by spaces; begins again at its end.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        rng = np.random.default_rng(n)
        picture, sound = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8), 0.2 * rng.normal(size=4_000)
        lacked = lacks[n % len(lacks)].split()
        if "image" not in lacked:
            Image.fromarray(picture).save(root / f"{n:02d}.png")
        if "audio" not in lacked:
            soundfile.write(root / f"{n:02d}.wav", sound, 16_000, subtype="PCM_16")
        row = {
            "id": f"{n:02d}", "image": f"{n:02d}.png", "text": f"picture {n} " + "of a bird" * (n % 3),
            "audio": f"{n:02d}.wav", "label": ("cat", "dog")[n // 2 % 2], "site": ("north", "south")[2 * n // count],
            "split": "test" if n % 5 == 4 else "train",
        }  # fmt: skip
        rows.append({**row, **dict.fromkeys(lacked)})
    return rows


def write_holes(root: Path, **choices: Any) -> None:
    """Writes such a table; see `rows_of`."""
    write_jsonl(root, rows_of(root, **choices))


def on(root: Path, *overrides: str, data: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Returns overrides of the tiny experiment: three modalities on a table, whose sites are clients."""
    keys = {"source": "table", "root": str(root), "workers": 0, **(data or {})}
    text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in keys.items())
    return (f"data={{{text}}}", AUDIO, "federation={partition: {kind: by_group, field: site}}", *overrides)
