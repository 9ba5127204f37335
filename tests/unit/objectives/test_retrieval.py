"""Recall@k against plain references, ties against the model, and memory that does not grow with queries x items."""

from __future__ import annotations

import random

import pytest
import torch

from lwfed.objectives import retrieval
from lwfed.objectives.retrieval import best_ranks, recall_at, relevance, top_k, zero_shot_accuracy


def _embeddings(rows: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def _reference(queries: torch.Tensor, items: torch.Tensor, right: list[set[int]], k: int) -> float:
    queries, items = torch.nn.functional.normalize(queries), torch.nn.functional.normalize(items)
    hits = 0
    for query, wanted in zip(queries, right, strict=True):
        scores = (items @ query).tolist()
        ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
        hits += bool(wanted & set(ranked[:k]))
    return hits / len(right)


@pytest.mark.parametrize("at_a_time", [1, 70, 10**9])
def test_coco_protocol_both_ways(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(retrieval, "SCORES_AT_A_TIME", at_a_time)
    images, captions = _embeddings(20, seed=0), _embeddings(100, seed=1)
    owners = [i // 5 for i in range(100)]
    random.Random(0).shuffle(owners)
    captions = captions + 0.5 * images[owners]
    each, own = [{n} for n in range(20)], [{owner} for owner in owners]
    i2t = recall_at(images, captions, relevant=relevance(each, own))
    t2i = recall_at(captions, images, relevant=relevance(own, each))
    captions_of = [{c for c in range(100) if owners[c] == i} for i in range(20)]
    for k in (1, 5, 10, 50):
        assert i2t[k] == pytest.approx(_reference(images, captions, captions_of, k))
        assert t2i[k] == pytest.approx(_reference(captions, images, [{o} for o in owners], k))
    assert 0 < t2i[1] < t2i[10] < t2i[50] == 1


def test_relevance_lists_items_of_a_common_group_in_order_and_once() -> None:
    found = relevance([{2}, {0}, {7}], [{0}, {2}, {0}, {1}, {0}])
    assert found.tolist() == [[1, -1, -1], [0, 2, 4], [-1, -1, -1]]
    assert relevance([{0, 1}, {1}], [{1}, {0, 1}]).tolist() == [[0, 1], [0, 1]]


def test_a_collapsed_or_broken_model_finds_nothing() -> None:
    relevant = torch.arange(61)[:, None]
    constant = _embeddings(1, seed=3).expand(61, 8)
    for value in (constant, torch.zeros(61, 8), torch.full((61, 8), torch.nan)):
        assert recall_at(value, value, relevant=relevant) == {1: 0, 5: 0, 10: 0, 50: 0}
    perfect = _embeddings(61, seed=0)
    assert recall_at(perfect, perfect, relevant=relevant) == {1: 1, 5: 1, 10: 1, 50: 1}


def test_right_items_do_not_stand_in_each_others_way() -> None:
    query, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    assert best_ranks(query, items, relevant=torch.tensor([[0, 1]])).tolist() == [1]
    assert best_ranks(query, items, relevant=torch.tensor([[2, -1]])).tolist() == [0]
    twice = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert best_ranks(query, twice, relevant=torch.tensor([[0, 1]])).tolist() == [0]
    assert best_ranks(query, twice, relevant=torch.tensor([[0]])).tolist() == [1]


def test_random_embeddings_score_about_chance() -> None:
    queries, items = _embeddings(2000, seed=0), _embeddings(100, seed=1)
    recall = recall_at(queries, items, relevant=(torch.arange(2000) % 100)[:, None])
    for k, value in recall.items():
        assert value == pytest.approx(k / 100, abs=0.04)


def test_top_k_lists_the_best_first() -> None:
    queries, items = _embeddings(7, seed=0), _embeddings(9, seed=1)
    scores, indices = top_k(queries, items, k=4)
    full = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(items).T
    assert torch.equal(indices, full.argsort(dim=1, descending=True)[:, :4])
    torch.testing.assert_close(scores, full.gather(1, indices))
    assert top_k(queries, items, k=50)[1].shape == (7, 9)


def test_zero_shot_averages_prompts_and_takes_no_tie() -> None:
    classes = torch.eye(3, 8)[:, None, :].repeat(1, 2, 1)
    images = torch.eye(3, 8)[[0, 1, 2, 2]]
    labels = torch.tensor([0, 1, 2, 1])
    assert zero_shot_accuracy(images, classes, labels) == 0.75
    noisy = classes.clone()
    noisy[:, 1] = 100 * torch.eye(3, 8)[[1, 2, 0]]  # a long second prompt counts as much as the first: all tie
    assert zero_shot_accuracy(images, noisy, labels) == 0.0
    assert zero_shot_accuracy(torch.ones(4, 8), torch.ones(3, 2, 8), labels) == 0.0
