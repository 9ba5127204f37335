"""Rounds of pfl-research, a simulator that keeps nothing, to be measured beside lwfed's.

It is a dependency of nothing here. Where it is absent its rows are left out. To have them:
`pip install --no-deps --target FOLDER pfl dp-accounting prv-accountant multiprocess dill absl-py attrs dm-tree`, and
FOLDER in PYTHONPATH.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def missing() -> str | None:
    """Returns why there are no rows of pfl-research; None if it is installed."""
    try:
        import_module("pfl.aggregate.simulate")
        import_module("pfl.model.pytorch")
    except ImportError as error:
        return f"pfl-research is not installed ({error})"
    return None


class Problem(nn.Module):
    """What pfl trains: a module, and the loss of the client whose number is all of its data.

    Args:
        module: The module.
        loss: Client's number -> loss; None if its clients compute none.
    """

    def __init__(self, module: nn.Module, loss: Callable[[int], Tensor] | None) -> None:
        super().__init__()
        self.module, self._loss = module, loss

    def loss(self, number: Tensor) -> Tensor:
        """Returns a client's loss."""
        assert self._loss is not None
        return self._loss(int(number))

    def metrics(self, number: Tensor) -> dict[str, Any]:
        """Returns a metric that costs nothing; pfl asks in the first round."""
        return {"clients": import_module("pfl.metrics").Weighted(len(number), 1)}


def rounds(problem: Problem, *, num_clients: int, num_rounds: int, step: float | None = None) -> list[float]:
    """Returns the CPU seconds of all rounds but the first, in each of which every client has the same weight.

    Args:
        problem: The module and its loss.
        num_clients: Number of clients, all of which take part.
        num_rounds: Number of rounds.
        step: What a client adds to every weight instead of training; None: it takes one AdamW step.
    """
    simulate = import_module("pfl.aggregate.simulate")
    averaging, base = import_module("pfl.algorithm.federated_averaging"), import_module("pfl.algorithm.base")
    pytorch, params = import_module("pfl.model.pytorch"), import_module("pfl.hyperparam.base")
    metrics = import_module("pfl.metrics")
    marks: list[float] = []

    class Adding(averaging.FederatedAveraging):  # type: ignore[misc, name-defined]
        def train_one_user(self, initial: Any, model: Any, dataset: Any, context: Any) -> tuple[Any, Any]:
            with torch.no_grad():
                torch._foreach_add_(list(model.variable_map.values()), step)
            return model.get_model_difference(initial), metrics.Metrics()

    class Marks(import_module("pfl.callback.base").TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            marks.append(time.process_time())
            return False, metrics.Metrics()

    def client(name: int) -> Any:
        return import_module("pfl.data.dataset").Dataset(raw_data=[np.array([name])], user_id=str(name))

    clients: Sequence[int] = range(num_clients)
    asked = iter(list(clients) * num_rounds)
    federated = import_module("pfl.data.federated_dataset").FederatedDataset(client, lambda: next(asked))
    algorithm = averaging.FederatedAveraging() if step is None else Adding()
    algorithm.run(
        base.NNAlgorithmParams(
            central_num_iterations=num_rounds, evaluation_frequency=num_rounds + 1,
            train_cohort_size=num_clients, val_cohort_size=0,
        ),
        simulate.SimulatedBackend(training_data=federated, val_data=federated),
        pytorch.PyTorchModel(
            problem, torch.optim.AdamW, torch.optim.SGD(problem.parameters(), lr=1.0)
        ),
        params.NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1e-4, local_batch_size=None),
        params.NNEvalHyperParams(local_batch_size=None),
        callbacks=[Marks()],
        send_metrics_to_platform=False,
    )  # fmt: skip
    return [after - before for before, after in pairwise(marks)]
