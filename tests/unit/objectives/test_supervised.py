"""Cross-entropy is torch's, in fp32."""

from __future__ import annotations

import torch

from lwfed.objectives.supervised import cross_entropy


def test_mean_over_the_examples() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    torch.testing.assert_close(cross_entropy(logits, labels), torch.nn.functional.cross_entropy(logits, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
