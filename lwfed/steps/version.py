"""The code's version: a digest of the sources that decide numbers, and of the libraries that compute them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import metadata, resources

from lwfed.types.canonical import digest_of

DECIDING = ("models", "objectives", "federated", "data", "plan", "types")
DECIDING_FILES = (
    "params.py", "ranks.py", "steps/aggregate_round.py", "steps/batching.py", "steps/counted.py", "steps/download.py",
    "steps/initial.py", "steps/losses.py", "steps/prefix.py", "steps/residuals.py", "steps/running_sum.py",
    "steps/runtime.py", "steps/shares.py", "steps/stage.py", "steps/train_client.py", "steps/train_stage.py",
    "steps/upload.py", "steps/workbench.py",
)  # fmt: skip
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "scipy", "pillow", "soundfile")


@lru_cache(maxsize=1)
def code_version() -> str:
    """Gives the version, as 64 hex digits. A stage made by other code is never mistaken for this code's."""
    package = resources.files("lwfed")
    sources = {}
    for folder in DECIDING:
        for entry in (package / folder).iterdir():
            if entry.name.endswith(".py"):
                sources[f"{folder}/{entry.name}"] = hashlib.sha256(entry.read_bytes()).hexdigest()
    for name in DECIDING_FILES:
        sources[name] = hashlib.sha256((package / name).read_bytes()).hexdigest()
    return digest_of({"sources": sources, "libraries": {name: metadata.version(name) for name in LIBRARIES}})
