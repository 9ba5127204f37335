"""What each rank of a distributed test does; also run alone, on everything, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from lwfed import ranks
from lwfed.models.batchnorm import BatchNorm, BatchNorm2d
from lwfed.objectives.alignment import alignment_loss
from lwfed.objectives.contrastive import contrastive_loss, info_nce
from lwfed.objectives.supervised import cross_entropy

COUNTS = (5, 3)  # rows of each rank: uneven on purpose
WIDTH = 6


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "x": torch.randn(sum(COUNTS), WIDTH, generator=generator) * 3 + 2,
        "z": torch.randn(sum(COUNTS), WIDTH, generator=generator),
        "labels": torch.randint(0, WIDTH, (sum(COUNTS),), generator=generator),
        "weight": torch.randn(WIDTH, WIDTH, generator=generator),
        "gain": torch.randn(WIDTH, generator=generator),
    }


def work(rows: slice) -> dict[str, Tensor]:
    """Computes losses and gradients of some rows through BatchNorm and a shared weight."""
    given = data()
    results: dict[str, Tensor] = {}
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "info_nce": lambda a, b: info_nce(a, b, temperature=0.1),
        "pairs": lambda a, b: contrastive_loss({"k": a, "l": b, "m": a * b}, temperature=0.3),
        "cross_entropy": lambda a, b: cross_entropy(a + b, given["labels"][rows]),
        "weighted": lambda a, b: cross_entropy(
            a + b, given["labels"][rows], label_smoothing=0.2, class_weights=given["gain"].abs()
        ),
        "aligned": lambda a, b: alignment_loss({"k": a, "l": b}, {"k": b.detach().square(), "l": a.detach() + 1}),
        "squares": lambda a, b: (a * b).square().sum(),
    }
    for name, loss in losses.items():
        norm = BatchNorm(WIDTH)
        norm.weight.data.copy_(given["gain"])
        weight = given["weight"].clone().requires_grad_()
        x = given["x"][rows].clone().requires_grad_()
        output = norm(x @ weight)
        value = loss(output, given["z"][rows] @ weight)
        value.backward()
        state = {"loss": value, "output": output, "x": x.grad, "weight": weight.grad, "gain": norm.weight.grad}
        state |= {"bias": norm.bias.grad} | dict(norm.named_buffers())
        results |= {f"{name}.{key}": tensor.detach().clone() for key, tensor in state.items() if tensor is not None}
    maps = BatchNorm2d(2)
    pixels = given["x"][rows].clone().requires_grad_()
    output = maps(pixels.unflatten(1, (2, 3, 1)))
    (output.flatten(1) * given["z"][rows]).square().sum().backward()
    state = {"output": output, "x": pixels.grad, "weight": maps.weight.grad} | dict(maps.named_buffers())
    results |= {f"maps.{key}": tensor.detach().clone() for key, tensor in state.items() if tensor is not None}
    frozen = BatchNorm(WIDTH).eval()
    results["frozen.output"] = frozen(given["x"][rows])
    gathered, first = ranks.gather(given["labels"][rows])
    results["gather.labels"], results["gather.first"] = gathered, torch.tensor(first)
    parts = [torch.ones(2), torch.full((2, 2), 3.0)]
    ranks.total_(parts)
    results["total_"] = torch.cat([part.flatten() for part in parts])
    return results


def run(rank: int, folder: str) -> None:
    """One rank of two; its results go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(COUNTS))
    first = sum(COUNTS[:rank])
    results = work(slice(first, first + COUNTS[rank]))
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()
