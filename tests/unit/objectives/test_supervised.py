"""Cross-entropy is torch's, in fp32; with smoothed labels and weighted classes it is the formula."""

from __future__ import annotations

import math

import pytest
import torch

from lwfed.objectives.supervised import balanced_weights, cross_entropy


def test_mean_over_the_examples() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    torch.testing.assert_close(cross_entropy(logits, labels), torch.nn.functional.cross_entropy(logits, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32


def test_smoothed_labels_and_weights_by_hand() -> None:
    """p = (1/2, 1/4, 1/4): the classes' losses are ln 2, ln 4 and ln 4."""
    logits = torch.tensor([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0]]).log()
    labels, two, four = torch.tensor([0, 2]), math.log(2), math.log(4)
    smooth = 0.3 / 3 * (two + 2 * four)
    expected = (0.7 * (two + four) + 2 * smooth) / 2
    assert float(cross_entropy(logits, labels, label_smoothing=0.3)) == pytest.approx(expected)
    weights = torch.tensor([3.0, 1.0, 0.5])
    assert float(cross_entropy(logits, labels, class_weights=weights)) == pytest.approx((3 * two + 0.5 * four) / 2)
    smooth = 0.3 / 3 * (3 * two + 1 * four + 0.5 * four)
    expected = (0.7 * (3 * two + 0.5 * four) + 2 * smooth) / 2
    found = cross_entropy(logits, labels, label_smoothing=0.3, class_weights=weights)
    assert float(found) == pytest.approx(expected)


def test_parts_of_a_batch_add_up_to_the_whole_whatever_their_classes() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    labels, weights = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0.5, 2.0, 1.0])
    parts = [cross_entropy(logits[rows], labels[rows], class_weights=weights) / 2 for rows in (slice(3), slice(3, 6))]
    torch.testing.assert_close(sum(parts), cross_entropy(logits, labels, class_weights=weights))


def test_balanced_classes_count_alike_with_a_mean_of_one() -> None:
    counts = [8, 2, 0, 10]
    weights = balanced_weights(counts)
    assert weights == [20 / (3 * 8), 20 / (3 * 2), 0.0, 20 / (3 * 10)]
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) == pytest.approx(sum(counts))
    assert balanced_weights([4, 4]) == [1.0, 1.0]
