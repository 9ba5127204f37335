"""Runs of a second or two, through the steps themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwfed.launch.launchers import make_launcher
from lwfed.round.workbench import Workbench
from lwfed.spec.load import build_spec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import Options, draft, prepare
from tests.events import ignore

ENCODERS = {
    "image": {
        "family": "vit",
        "arch": "vit_tiny_patch16_224",
        "config": {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
    },
    "text": {
        "family": "distilbert",
        "max_tokens": 64,
        "config": {
            "vocab_size": 384,
            "dim": 24,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 2,
            "max_position_embeddings": 64,
        },
    },
    "audio": {
        "family": "ast",
        "config": {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_length": 72,
            "num_mel_bins": 16,
        },
    },
}


def spec(*modalities: str, store: Path, **sections: Any) -> dict[str, Any]:
    """Returns a spec of two stages of one round, two clients, 32 scenes to train on and 16 to test."""
    return {
        "name": "tiny",
        "stages": {"rounds": [1, 1]},
        "data": {"source": "shapes", "workers": 0, "augment": False, "shapes": SHAPES},
        "model": {
            "encoders": {modality: ENCODERS[modality] for modality in modalities},
            "projection": {"hidden": 32, "out": 16, "dropout": 0.1},
            "objective": {"kind": "contrastive", "temperature": 0.07},
        },
        "training": {"local_epochs": 2, "batch_size": 16, "learning_rate": 2.5e-3},
        "federation": {"num_clients": 2},
        "launch": {"device": "cpu"},
        "store": {"uri": str(store)},
        "tracking": {"uri": None},
        **sections,
    }


SHAPES = {"train": 32, "test": 16, "image_size": 16}


def run(values: dict[str, Any], *, last_stage: int | None = None) -> tuple[Workbench, dict[str, Any]]:
    """Runs a spec; returns the bench and the summary."""
    parsed = build_spec(values)
    bench = Workbench.at(parsed.store.uri)
    prepared = prepare(draft(parsed, store=bench.store, options=Options()), store=bench.store, emit=ignore)
    launcher = make_launcher(parsed, store=bench.store, run_id=prepared.run_id)
    summary = run_stages(prepared, launcher=launcher, store=bench.store, emit=ignore, cache=None, last_stage=last_stage)
    return bench, summary.to_values()
