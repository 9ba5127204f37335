"""Macro metrics against a plain reference, from one pooled matrix."""

from __future__ import annotations

import pytest
import torch

from lwfed.objectives.classification import confusion, metrics


def _reference(true: list[int], predicted: list[int]) -> dict[str, float]:
    seen = sorted(set(true) | set(predicted))
    scores = []
    for c in seen:
        hits = sum(t == p == c for t, p in zip(true, predicted, strict=True))
        precision = hits / predicted.count(c) if predicted.count(c) else 0.0
        recall = hits / true.count(c) if true.count(c) else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores.append((precision, recall, f1))
    macro = [sum(column) / len(seen) for column in zip(*scores, strict=True)]
    accuracy = sum(t == p for t, p in zip(true, predicted, strict=True)) / len(true)
    return dict(zip(("accuracy", "precision", "recall", "f1"), (accuracy, *macro), strict=True))


def test_batches_pool_to_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (83,), generator=generator)  # class 5 never occurs as a label
    logits = torch.randn(83, 7, generator=generator) + 2 * torch.eye(7)[labels]
    logits[:, 6] = -100  # class 6 occurs nowhere
    pooled = sum(confusion(logits[i : i + 10], labels[i : i + 10]) for i in range(0, 83, 10))
    assert isinstance(pooled, torch.Tensor) and torch.equal(pooled, confusion(logits, labels))
    found = metrics(pooled)
    for name, value in _reference(labels.tolist(), logits.argmax(1).tolist()).items():
        assert found[name] == pytest.approx(value, abs=1e-12)


def test_rows_are_true_classes() -> None:
    matrix = confusion(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 0]))
    assert matrix.tolist() == [[1, 1], [0, 1]]
    assert metrics(matrix) == {
        "accuracy": pytest.approx(2 / 3),
        "precision": pytest.approx(0.75),
        "recall": pytest.approx(0.75),
        "f1": pytest.approx(2 / 3),
    }


def test_nothing_right_or_nothing_at_all_is_zero() -> None:
    wrong = confusion(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    for matrix in (wrong, torch.zeros(3, 3, dtype=torch.int64)):
        assert metrics(matrix) == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0}
