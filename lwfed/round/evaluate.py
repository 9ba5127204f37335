"""How good a model is: on the server's test data, or on a client's held-out share.

An example counts for what it has: for the pairs of modalities that it has both of, and for its class by any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lwfed.data.batches import Batch, caption_batches, eval_batches
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import Example, Source
from lwfed.models.multimodal import Multimodal
from lwfed.objectives.classification import confusion, metrics
from lwfed.objectives.contrastive import contrastive_loss
from lwfed.objectives.retrieval import recall_at, relevance, zero_shot_accuracy
from lwfed.plan.blending import FUSED
from lwfed.round.batching import to_device
from lwfed.round.forward import WHOLE, Forward
from lwfed.round.losses import temperature_of
from lwfed.spec.model import ModelSpec
from lwfed.spec.training import EvaluationSpec
from lwfed.types.modalities import retrieval_task


@dataclass(frozen=True, slots=True)
class Embedded:
    """Normalised embeddings of some examples.

    Attributes:
        of: Modality -> Float [rows, P] of the examples that have it; text has one row per caption.
        owner: Modality -> Int64 [rows]: the example that each row belongs to, in their order.
        loss: Mean loss over the batches that have one; None if none has.
    """

    of: dict[str, Tensor]
    owner: dict[str, Tensor]
    loss: float | None


def evaluate(
    module: Multimodal,
    *,
    source: Source,
    examples: Sequence[Example],
    inputs: InputSettings,
    model: ModelSpec,
    evaluation: EvaluationSpec,
    workers: int,
    device: torch.device,
    prefix: str = "test",
    forward: Forward = WHOLE,
) -> dict[str, float]:
    """Evaluates a model.

    Args:
        module: The model; it is left in eval mode.
        source: The source that the examples are read from.
        examples: The examples to evaluate on.
        inputs: The model's input settings.
        model: The model's spec; its objective decides the metrics.
        evaluation: Batch size, zero-shot classes and prompts.
        workers: Number of threads that decode ahead.
        device: The model's device.
        prefix: First part of the metrics' names.
        forward: How the model is computed.

    Returns:
        Recall in both directions for each pair of modalities (and zero-shot accuracy), or accuracy, precision, recall
        and F1, and if losses are blended the loss and the accuracy of each modality's own head; fractions in [0, 1].
        Pairs and modalities that no example has are left out.
    """
    module.eval()
    batches = eval_batches(
        source, examples=examples, settings=inputs, batch_size=evaluation.batch_size, workers=workers
    )
    with torch.inference_mode(), closing(batches):
        if model.objective.kind == "supervised":
            scores = _classify(module, batches, model=model, device=device, forward=forward)
        else:
            embedded = embed(
                module, batches, examples=examples, inputs=inputs, model=model, evaluation=evaluation, device=device,
                forward=forward,
            )  # fmt: skip
            scores = {} if embedded.loss is None else {"loss": embedded.loss}
            scores |= _retrieval(embedded, examples=examples)
            if module.temperature is not None:
                scores["temperature"] = float(module.temperature())
            scores |= _zero_shot(
                module, embedded, source=source, examples=examples, inputs=inputs, evaluation=evaluation, device=device,
                forward=forward,
            )  # fmt: skip
    return {f"{prefix}/{name}": float(value) for name, value in scores.items()}


def embed(
    module: Multimodal,
    batches: Iterator[Batch],
    *,
    examples: Sequence[Example],
    inputs: InputSettings,
    model: ModelSpec,
    evaluation: EvaluationSpec,
    device: torch.device,
    forward: Forward = WHOLE,
) -> Embedded:
    """Embeds examples in every modality; if an example has several captions, all of them are embedded."""
    rows = dict[str, list[Tensor]]()
    losses: list[tuple[float, int]] = []
    for batch in batches:
        batch = to_device(batch, device)
        projected = forward(module, batch)
        for m, p in projected.items():
            rows.setdefault(m, []).append(torch.nn.functional.normalize(p.float(), dim=-1).cpu())
        if model.objective.kind == "contrastive":
            loss = contrastive_loss(projected, temperature=temperature_of(module, model.objective), rows=batch.rows)
            losses += [] if loss is None else [(float(loss), len(batch.ids))]
    having = {m: [n for n, example in enumerate(examples) if example.has(m)] for m in rows}
    if "text" in rows and any(len(e.captions) > 1 for e in examples):
        captions = [caption for n in having["text"] for caption in examples[n].captions]
        having["text"] = [n for n in having["text"] for _ in examples[n].captions]
        size = evaluation.batch_size
        rows["text"] = [embed_texts(module, captions, inputs=inputs, batch_size=size, device=device, forward=forward)]
    weight = sum(count for _, count in losses)
    return Embedded(
        of={m: torch.cat(parts) for m, parts in rows.items()},
        owner={m: torch.tensor(owners) for m, owners in having.items()},
        loss=sum(loss * count for loss, count in losses) / weight if losses else None,
    )


def embed_texts(
    module: Multimodal, texts: Sequence[str], *, inputs: InputSettings, batch_size: int, device: torch.device,
    forward: Forward = WHOLE,
) -> Tensor:  # fmt: skip
    """Returns the embeddings of texts: Float [number of texts, P], normalised, on the CPU."""
    places, rows = list[int](), list[Tensor]()
    for chosen, tokens in caption_batches(texts, settings=inputs, batch_size=batch_size):
        projected = forward.project(module, "text", {name: tensor.to(device) for name, tensor in tokens.items()})
        rows.append(torch.nn.functional.normalize(projected.float(), dim=-1).cpu())
        places += chosen
    embedded = torch.cat(rows)
    return torch.empty_like(embedded).index_copy_(0, torch.tensor(places), embedded)


def first_alike(examples: Sequence[Example], *modalities: str) -> Tensor:
    """Returns for each example the first one with the same item: Int64 [N]; see `Example.item`."""
    first = dict[str, int]()
    return torch.tensor([first.setdefault(e.item(*modalities), n) for n, e in enumerate(examples)], dtype=torch.int64)


def _retrieval(embedded: Embedded, *, examples: Sequence[Example]) -> dict[str, float]:
    """Returns recall between each pair of modalities, over the examples that have both.

    Examples with the same image, or without images the same sound, answer one another. An image or sound that several
    examples have is one item.
    """
    alike = first_alike(examples, "image", "audio").tolist()
    scores: dict[str, float] = {}
    for a, b in combinations(sorted(embedded.of), 2):
        both = {n for n, example in enumerate(examples) if example.has(a) and example.has(b)}
        if not both:
            continue
        rows, groups = dict[str, Tensor](), dict[str, list[set[int]]]()
        for modality in (a, b):
            owners = embedded.owner[modality].tolist()
            first, members = dict[int | str, int](), dict[int, set[int]]()
            for row, owner in enumerate(owners):
                if owner in both:
                    item = row if modality == "text" else examples[owner].item(modality)
                    members.setdefault(first.setdefault(item, row), set()).add(alike[owner])
            rows[modality], groups[modality] = embedded.of[modality][list(members)], list(members.values())
        for query, item in ((a, b), (b, a)):
            found = recall_at(rows[query], rows[item], relevant=relevance(groups[query], groups[item]))
            for k, value in found.items():
                scores[f"{retrieval_task(query, item)}/R@{k}"] = value
    return scores


def _zero_shot(
    module: Multimodal,
    embedded: Embedded,
    *,
    source: Source,
    examples: Sequence[Example],
    inputs: InputSettings,
    evaluation: EvaluationSpec,
    device: torch.device,
    forward: Forward,
) -> dict[str, float]:
    """Returns the accuracy over the examples that have an image."""
    classes = source.classes
    labels = [example.label for example in examples if example.has("image")]
    if not classes or None in labels or "image" not in embedded.of or "text" not in module.modalities:
        return {}
    names = evaluation.classes or classes
    texts = [prompt.replace("{c}", name) for name in names for prompt in evaluation.prompts]
    size = evaluation.batch_size
    prompts = embed_texts(module, texts, inputs=inputs, batch_size=size, device=device, forward=forward)
    prototypes = prompts.reshape(len(names), len(evaluation.prompts), -1)
    accuracy = zero_shot_accuracy(embedded.of["image"], prototypes, torch.tensor(labels))
    return {"zero_shot/accuracy": accuracy}


def _classify(
    module: Multimodal, batches: Iterator[Batch], *, model: ModelSpec, device: torch.device, forward: Forward
) -> dict[str, float]:
    """Returns the scores of the fused head, and of each modality's own over the examples that have it."""
    logits, labels = dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    for batch in batches:
        batch = to_device(batch, device)
        projected = forward(module, batch)
        found = {FUSED: module.classify(projected, rows=batch.rows, size=len(batch.ids))}
        if model.blending is not None:
            found |= {m: module.classify_alone(m, projections) for m, projections in projected.items()}
        for head, rows in found.items():
            logits.setdefault(head, []).append(rows.float().cpu())
            if batch.labels is not None:
                own = batch.labels.cpu()
                labels.setdefault(head, []).append(own[batch.rows[head]] if head in batch.rows else own)
    scores: dict[str, float] = {}
    for head, parts in logits.items():
        all_logits, all_labels = torch.cat(parts), torch.cat(labels[head])
        loss = float(torch.nn.functional.cross_entropy(all_logits, all_labels))
        measured = {"loss": loss, **metrics(confusion(all_logits, all_labels))}
        if head == FUSED:
            scores |= measured
        else:
            scores |= {f"{head}/{name}": measured[name] for name in ("loss", "accuracy")}
    return scores
