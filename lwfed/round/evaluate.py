"""How good a model is: on the server's test data, or on a client's held-out share."""

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
from lwfed.round.batching import to_device
from lwfed.round.losses import temperature_of
from lwfed.spec.model import ModelSpec
from lwfed.spec.training import EvaluationSpec
from lwfed.types.modalities import retrieval_task


@dataclass(frozen=True, slots=True)
class Embedded:
    """Normalised embeddings of some examples.

    Attributes:
        of: Modality -> Float [N, P]; text has one row per caption.
        owner: Int64 [rows of text]: the example that each caption belongs to.
        loss: Mean loss over batches.
    """

    of: dict[str, Tensor]
    owner: Tensor
    loss: float


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

    Returns:
        Recall in both directions for each pair of modalities (and zero-shot accuracy), or accuracy, precision, recall
        and F1; fractions in [0, 1].
    """
    module.eval()
    batches = eval_batches(
        source, examples=examples, settings=inputs, batch_size=evaluation.batch_size, workers=workers
    )
    with torch.inference_mode(), closing(batches):
        if model.objective.kind == "supervised":
            scores = _classify(module, batches, device=device)
        else:
            embedded = embed(
                module, batches, examples=examples, inputs=inputs, model=model, evaluation=evaluation, device=device
            )
            scores = {"loss": embedded.loss, **_retrieval(embedded, model=model, examples=examples)}
            if module.temperature is not None:
                scores["temperature"] = float(module.temperature())
            scores |= _zero_shot(
                module, embedded, source=source, examples=examples, inputs=inputs, evaluation=evaluation, device=device
            )
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
) -> Embedded:
    """Embeds examples in every modality; if an example has several captions, all of them are embedded."""
    rows: dict[str, list[Tensor]] = {m: [] for m in model.modalities}
    losses: list[tuple[float, int]] = []
    for batch in batches:
        batch = to_device(batch, device)
        projected = module(batch.inputs)
        for m, p in projected.items():
            rows[m].append(torch.nn.functional.normalize(p.float(), dim=-1).cpu())
        if model.objective.kind == "contrastive" and len(batch.ids) > 1:
            loss = contrastive_loss(projected, temperature=temperature_of(module, model.objective))
            losses.append((float(loss), len(batch.ids)))
    owner = torch.arange(len(examples))
    if "text" in rows and any(len(e.captions) > 1 for e in examples):
        captions = [caption for e in examples for caption in e.captions]
        owner = torch.tensor([i for i, e in enumerate(examples) for _ in e.captions])
        rows["text"] = [embed_texts(module, captions, inputs=inputs, batch_size=evaluation.batch_size, device=device)]
    weight = sum(count for _, count in losses) or 1
    return Embedded(
        of={m: torch.cat(parts) for m, parts in rows.items()},
        owner=owner,
        loss=sum(loss * count for loss, count in losses) / weight,
    )


def embed_texts(
    module: Multimodal, texts: Sequence[str], *, inputs: InputSettings, batch_size: int, device: torch.device
) -> Tensor:
    """Returns the embeddings of texts: Float [number of texts, P], normalised, on the CPU."""
    rows = []
    for tokens in caption_batches(texts, settings=inputs, batch_size=batch_size):
        projected = module.project("text", {name: tensor.to(device) for name, tensor in tokens.items()})
        rows.append(torch.nn.functional.normalize(projected.float(), dim=-1).cpu())
    return torch.cat(rows)


def first_alike(examples: Sequence[Example], *modalities: str) -> Tensor:
    """Returns for each example the first one with the same item: Int64 [N]; see `Example.item`."""
    first = dict[str, int]()
    return torch.tensor([first.setdefault(e.item(*modalities), n) for n, e in enumerate(examples)], dtype=torch.int64)


def _retrieval(embedded: Embedded, *, model: ModelSpec, examples: Sequence[Example]) -> dict[str, float]:
    """Returns recall between each pair of modalities.

    Examples with the same image, or without images the same sound, answer one another. An image or sound that several
    examples have is one item.
    """
    alike = first_alike(examples, "image", "audio")
    rows, owner = dict(embedded.of), {"text": alike[embedded.owner]}
    for modality in set(model.modalities) - {"text"}:
        kept = first_alike(examples, modality).unique()
        rows[modality], owner[modality] = rows[modality][kept], alike[kept]
    scores: dict[str, float] = {}
    for a, b in combinations(model.modalities, 2):
        for query, item in ((a, b), (b, a)):
            found = recall_at(rows[query], rows[item], relevant=relevance(owner[query], owner[item]))
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
) -> dict[str, float]:
    classes = source.classes
    labels = [example.label for example in examples]
    if not classes or any(label is None for label in labels) or not {"image", "text"} <= embedded.of.keys():
        return {}
    names = evaluation.classes or classes
    texts = [prompt.replace("{c}", name) for name in names for prompt in evaluation.prompts]
    prompts = embed_texts(module, texts, inputs=inputs, batch_size=evaluation.batch_size, device=device)
    prototypes = prompts.reshape(len(names), len(evaluation.prompts), -1)
    accuracy = zero_shot_accuracy(embedded.of["image"], prototypes, torch.tensor(labels))
    return {"zero_shot/accuracy": accuracy}


def _classify(module: Multimodal, batches: Iterator[Batch], *, device: torch.device) -> dict[str, float]:
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        batch = to_device(batch, device)
        projected = module(batch.inputs)
        logits.append(module.classify(projected).float().cpu())
        if batch.labels is not None:
            labels.append(batch.labels.cpu())
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    loss = torch.nn.functional.cross_entropy(all_logits, all_labels)
    return {"loss": float(loss), **metrics(confusion(all_logits, all_labels))}
