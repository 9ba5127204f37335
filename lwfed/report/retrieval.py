"""The report's retrieval grid: some captions of the test data with the images that the model finds for them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from lwfed.data.batches import eval_batches
from lwfed.models.build import load
from lwfed.objectives.retrieval import top_k
from lwfed.round.evaluate import embed, first_alike
from lwfed.round.forward import forward_of
from lwfed.round.runtime import deterministic, pick_device
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.run.tasks import Place
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint

NUM_QUERIES = 8
NUM_RESULTS = 5
NUM_CANDIDATES = 1000
"""The number of test examples that the grid searches."""


def retrieval_grid(checkpoint: Checkpoint, *, stage: Stage, bench: Workbench, place: Place) -> list[dict[str, Any]]:
    """Searches test images for some captions.

    Args:
        checkpoint: The model.
        stage: Its stage.
        bench: The process's workbench.
        place: The place of the data.

    Returns:
        `{"query", "results": [{"image", "score", "relevant", "caption"}]}` per query, best results first; empty if the
        model does not embed images and texts, or no example has both.
    """
    model = stage.plan.model
    if model.objective.kind != "contrastive" or not {"image", "text"} <= set(model.modalities):
        return []
    device = pick_device(place.device)
    source, inputs = bench.data(stage, place), bench.inputs(stage)
    tested = [e for e in bench.examples(stage, place, "test") if e.has("image") and e.has("text")]
    if not tested:
        return []
    examples = [tested[n] for n in first_alike(tested, "image").unique().tolist()][:NUM_CANDIDATES]
    tensors = bench.frozen(
        checkpoint, list(checkpoint.blocks), store=bench.store, cache=BlockCache(None), device=device
    )
    module = load(bench.skeleton(stage.key), tensors).eval()
    firsts = [replace(example, captions=example.captions[:1]) for example in examples]
    batches = eval_batches(
        source, examples=firsts, settings=inputs, batch_size=stage.plan.evaluation.batch_size, workers=place.workers
    )
    with deterministic(), torch.inference_mode(), closing(batches):
        embedded = embed(
            module,
            batches,
            examples=firsts,
            inputs=inputs,
            model=model,
            evaluation=stage.plan.evaluation,
            device=device,
            forward=forward_of(stage.plan, checkpoint, kept=bench.outputs),
        )
    step = max(1, len(examples) // NUM_QUERIES)
    queries = list(range(0, len(examples), step))[:NUM_QUERIES]
    scores, found = top_k(embedded.of["text"][queries], embedded.of["image"], k=NUM_RESULTS)
    return [
        {
            "query": examples[query].captions[0],
            "results": [
                {
                    "image": source.image(examples[item]),
                    "score": score,
                    "relevant": item == query,
                    "caption": examples[item].captions[0],
                }
                for score, item in zip(row_scores, row_items, strict=True)
            ],
        }
        for query, row_scores, row_items in zip(queries, scores.tolist(), found.tolist(), strict=True)
    ]
