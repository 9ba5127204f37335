"""Generates docs/clients.md: who trains, sends and receives what, for each strategy, from the plan and the ledger."""

from __future__ import annotations

from typing import Any

from lwfed.cost.architectures import architectures_of
from lwfed.cost.explain import kind_rows
from lwfed.cost.groups import fitted_blocks, group_costs
from lwfed.formats import bytes_text
from lwfed.plan.stages import plan_stages
from lwfed.spec.load import load_spec
from lwfed.spec.run import STRATEGIES, RunSpec
from lwfed.steps.prepare import count_architecture
from lwfed.steps.sources import server_source

GROUPS = """\
federation:
  num_clients: 10
  groups:
    - {name: weak, clients: [client-006..client-007], max_blocks: 1}
    - {name: small, clients: [client-008..client-009], device_memory: 12MB}
"""
PRESET = "shapes-supervised"
LACKING = "client-005"
"""The client of the example whose data lack sounds."""
ABOUT = {
    "layerwise": "Each stage trains its own blocks; the earlier ones are frozen for all clients.",
    "window": "Each stage trains its own blocks and those of the stage before.",
    "progressive": "Each stage trains all blocks that are present.",
    "end_to_end": "One stage trains the whole model.",
}


def clients_page(written_by: str) -> str:
    """Returns docs/clients.md.

    Args:
        written_by: Its first line.
    """
    lines = [
        written_by,
        "# Clients that are not alike",
        "",
        "Clients may differ in what their devices can carry and in what their data have. Both are part of the plan, so "
        "that every launcher trains the same model from the same spec; a pool of Kubernetes only says where a group "
        "runs. What an update may lack follows from the plan, and any other gap or surplus is refused by name.",
        "",
        "## Groups",
        "",
        "```yaml",
        *GROUPS.splitlines(),
        "```",
        "",
        "- `max_blocks: 1` trains the last block of each modality; `0` trains only the heads. Earlier blocks run "
        "without gradients. Since other clients train them, they are fetched again in each round. A stem is trained "
        "only together with all the blocks after it. Training only the heads needs the least memory, but more compute "
        "than training one block: a frozen last block runs on all tokens, a trained one by default on a single token.",
        "- `device_memory: 12MB` trains as many blocks as the ledger says fit, decided for each stage. The ledger "
        "counts tensors: leave 0.5 GB or more for libraries, and what a GPU's driver takes. If not even the heads fit, "
        "the run is refused before any work, with the figure; with `too_small: leave_out` the group skips every stage "
        "in which not all its blocks fit, as in the studies that let only clients with enough memory take part.",
        "- `strategy: layerwise` lets a group follow another strategy's stages.",
        "- Clients in no group are called `others`, and train what the strategy says.",
        "",
        "Each tensor is averaged over the clients that trained it. The weight of a client for a modality's tensors is "
        "the number of its examples that have the modality.",
        "",
        "## Data that lack a modality",
        "",
        "A client with fewer than two examples of a modality does not load, train or send its encoder and head. An "
        "example that lacks a modality is used for what it has: a contrastive pair of modalities counts the examples "
        "that have both, and a supervised fusion takes zeros for what is missing. `data.incomplete: skip` leaves such "
        "examples out, and `fail` refuses them. See [data.md](data.md).",
        "",
        "## Quorums",
        "",
        "`federation.min_fit_clients` counts updates. `unit_quorum` counts those that have a unit, and "
        "`modality_quorum: {audio: 2}` those that have a modality's. A round in which a unit has fewer fails, or with "
        "`unsent: keep` leaves the unit and the server's state of it as they were. `require: [client-000]` asks a "
        "client in every round; a round without its update fails. Cohorts are seeded, so a round that would fail even "
        "if no client does is refused before the first one.",
        "",
        "`lwfed plan` prices each kind of client. `lwfed show` tells what each client trained, sent and keeps, and who "
        "never took part; the report adds what was measured of each kind, and which units stayed as they were.",
        "",
        "## Who trains what",
        "",
        f"The plans of the preset `{PRESET}` with the groups above, if the data of {LACKING} have no sounds. "
        "Bytes are per client and round; memory is that of tensors.",
        "",
    ]
    for strategy in STRATEGIES:
        spec = load_spec(
            PRESET,
            overrides=[f"strategy={strategy}", "federation.num_clients=10", f"federation.groups={_groups()}"],
        )
        lines += [f"### {strategy}", "", ABOUT[strategy], "", *_table(spec)]
    return "\n".join(lines).rstrip() + "\n"


def _groups() -> str:
    """Returns the example's groups as the value of an override."""
    entries = [line.strip().removeprefix("- ") for line in GROUPS.splitlines() if line.strip().startswith("- ")]
    return f"[{', '.join(entries)}]"


def _table(spec: RunSpec) -> list[str]:
    lines = [
        "| stage | kind | clients | trains and sends | sends | receives | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in _planned(spec):
        cells = [row["stage"], row["kind"], row["clients"], row["trains"], *(
            bytes_text(row[key]) for key in ("exchanged_bytes", "download_bytes", "peak_bytes")
        )]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def _planned(spec: RunSpec) -> list[dict[str, Any]]:
    architectures = architectures_of(spec.model, folder=None, count=count_architecture)
    depths = {modality: item.depth for modality, item in architectures.items()}
    num_classes = len(server_source(spec).classes)
    fitted = fitted_blocks(spec, depths=depths, architectures=architectures, num_classes=num_classes)
    stages = plan_stages(spec, depths=depths, fitted=fitted, lacks={LACKING: ("audio",)})
    return kind_rows(stages, group_costs(stages, architectures=architectures, num_classes=num_classes))
