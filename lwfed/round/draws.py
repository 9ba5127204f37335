"""The inputs that a client's training draws in a round, and in all rounds that are certain to come.

An example's view is a function of the seed and of the number of epochs that the run has had, so what a round draws is
known before it. Who takes part in later rounds is known too, unless sampling depends on sizes, spares or failures; and
that there will be such rounds, unless a gate may end the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from lwfed.data.batches import Epochs, drawn, epoch_length
from lwfed.data.prefix_inputs import Inputs
from lwfed.plan.stages import StagePlan


def epochs_of(plan: StagePlan, server_round: int, *, num_examples: int) -> Epochs:
    """Returns the batches of a client's round: `local_steps`, or those of `local_epochs` epochs.

    Args:
        plan: The stage.
        server_round: r, counted from 1 within the stage.
        num_examples: Number of the client's examples.
    """
    training = plan.training
    per_epoch = epoch_length(num_examples, training.batch_size)
    num_batches = training.local_steps or training.local_epochs * per_epoch
    return Epochs((plan.first_round + server_round - 2) * -(-num_batches // per_epoch), num_batches)


def rounds_to_come(
    plan: StagePlan, server_round: int, *, client: str, cohort: Callable[[int], Collection[str]]
) -> tuple[int, ...]:
    """Returns the rounds, from a given one on, in which a client is certain to train if nothing fails.

    Args:
        plan: The stage.
        server_round: A round in which it trains.
        client: Its id.
        cohort: Returns the clients that a round asks, if the plan decides it alone.
    """
    if not plan.knows_rounds:
        return (server_round,)
    later = range(server_round + 1, plan.rounds + 1)
    if plan.cohort.fraction_fit == 1:
        return (server_round, *later)
    return (server_round, *(number for number in later if client in cohort(number)))


def drawn_in(plan: StagePlan, rounds: tuple[int, ...], *, inputs: Inputs) -> list[int]:
    """Returns the numbers of the inputs that a client draws in rounds of a stage, increasing.

    Args:
        plan: The stage.
        rounds: The rounds.
        inputs: The modality's inputs.
    """
    found: set[int] = set()
    for number in rounds:
        found |= drawn(
            inputs,
            epochs=epochs_of(plan, number, num_examples=len(inputs.examples)),
            batch_size=plan.training.batch_size,
            seed=plan.seed,
            length_buckets=plan.data.length_buckets and "text" in plan.model.modalities,
        )
        if len(found) == len(inputs):
            break
    return sorted(found)
