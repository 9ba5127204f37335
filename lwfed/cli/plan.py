"""`lwfed plan`, `lwfed partition` and `lwfed presets`: predictions and previews of an experiment."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwfed import environment
from lwfed.catalog.source import data_source
from lwfed.cli import tables
from lwfed.cli.options import Json, Overrides, Spec
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.drive.display import Display
from lwfed.formats import lacks_text, left_out_text, rates_text
from lwfed.spec.data import CLIENT_MARK
from lwfed.spec.load import DEFAULT_PRESET, load_spec, preset_names
from lwfed.spec.run import RunSpec
from lwfed.spec.variants import all_variants
from lwfed.types.errors import SpecError
from lwfed.types.uris import S3

if TYPE_CHECKING:
    from lwfed.data.protocol import Source

BAR = 40
HIGH_RATE = 1e-2
"""Learning rate above which a plan shows a warning."""


def plan(
    spec: Spec = None,
    override: Overrides = None,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="A client's memory, such as 8GiB."),
    ] = None,
    cache_disk: Annotated[
        str | None,
        typer.Option("--cache-disk", metavar="SIZE", help="A client's disk for outputs of frozen blocks, such as 2GB."),
    ] = None,
    link_mbps: Annotated[
        float | None, typer.Option("--link-mbps", metavar="N", min=0, help="A client's link in megabits per second.")
    ] = None,
    num_examples: Annotated[
        int | None, typer.Option("--examples", metavar="N", min=1, help="Examples per client; default: from the data.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="T", min=1, help="Tokens per caption; default: max_tokens."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict each stage's costs per client (parameters, bytes, FLOPs, memory), compared to end-to-end training.

    Needs no data and no GPU; of a table in a bucket it reads the table. Bytes are those of the exchanged files; memory
    is weights, gradients, AdamW's moments and the activations kept for one batch. A second table shows which levers
    each stage uses, and what each lever saves while the others stay in use.
    """
    from lwfed.cost.architectures import architectures_of
    from lwfed.cost.explain import kind_rows, parts, rows
    from lwfed.cost.groups import fitted_blocks, group_costs
    from lwfed.cost.ledger import end_to_end_cost, stage_costs
    from lwfed.cost.levers import savings
    from lwfed.models.weights import inputs_text
    from lwfed.plan.groups import untrained
    from lwfed.plan.stages import learning_rates, plan_stages
    from lwfed.plan.strategies import title_of
    from lwfed.steps.prepare import count_architecture, refuse_weights
    from lwfed.steps.sources import refuse_absent, with_num_clients
    from lwfed.types.sizes import parse_size

    values = load_spec(spec, overrides=override or [])
    refuse_weights(values.model)
    source = _opened(values)
    if source is not None:
        refuse_absent(values, source)
        values = with_num_clients(values, source)
    lacks, sizes = dict[str, dict[str, int]](), dict[str, int]()
    if source is not None and CLIENT_MARK not in (values.data.root or ""):
        from lwfed.steps.counting import lacking_by_plan

        lacks, sizes = lacking_by_plan(values, source.examples("train"))
    device_bytes = None if device_memory is None else parse_size(device_memory)
    architectures = architectures_of(values.model, folder=environment.cache_folder(), count=count_architecture)
    num_classes, depths = _num_classes(values, source), {m: item.depth for m, item in architectures.items()}
    fitted = fitted_blocks(values, depths=depths, architectures=architectures, num_classes=num_classes)
    stages = plan_stages(values, depths=depths, fitted=fitted, lacks=untrained(lacks, sizes=sizes))
    lengths = {m: item.tokens for m, item in architectures.items()}
    if tokens is not None and "text" in lengths:
        lengths["text"] = tokens
    costs = stage_costs(stages, architectures=architectures, num_classes=num_classes, tokens=lengths)
    kinds = kind_rows(stages, group_costs(stages, architectures=architectures, num_classes=num_classes, tokens=lengths))
    whole = end_to_end_cost(stages, architectures=architectures, num_classes=num_classes, tokens=lengths)
    examples = num_examples
    if examples is None and source is not None and CLIENT_MARK not in (values.data.root or ""):
        examples = max(1, len(source.examples("train")) // values.federation.clients)
    rates, inputs = learning_rates(stages), inputs_text(values.model.encoders)
    count = examples or values.training.batch_size
    table = rows(
        stages, costs=costs, end_to_end=whole, num_examples=count, device_bytes=device_bytes,
        disk_bytes=None if cache_disk is None else parse_size(cache_disk), link_mbps=link_mbps,
    )  # fmt: skip
    levers = savings(
        stages, architectures=architectures, num_examples=count, num_classes=num_classes, tokens=lengths
    )  # fmt: skip
    if as_json:
        print_json(
            {
                "name": values.name,
                "strategy": values.strategy,
                "at_most": values.stages.gate is not None,
                "learning_rates": rates,
                "inputs": inputs,
                "lacks": lacks,
                "rows": table,
                "levers": [asdict(saving) for saving in levers],
                "kinds": kinds,
                "stages": [cost.to_values() for cost in costs],
                "end_to_end": whole.to_values(),
            }
        )
        return
    console = make_console()
    counted = ", ".join(f"{count} {m} tokens" for m, count in lengths.items())
    console.print(
        f"[bold]{values.name}[/]  {title_of(values)}, batch {values.training.batch_size}, {counted}"
        + (f", {examples} examples per client" if examples else "")
        + (f", {part}" if (part := tables.taking_part(values.federation)) else "")
    )
    console.print(f"learning rates: {rates_text(rates)}", highlight=False)
    console.print(f"inputs: {inputs}", highlight=False, markup=False)
    for line in lacks_text(lacks, sizes):
        console.print(line, highlight=False)
    if any(rate is not None and rate > HIGH_RATE for by_stage in rates.values() for rate in by_stage):
        console.print(
            f"[yellow]warning[/] AdamW seldom trains with a learning rate above {HIGH_RATE}; rates are used as written "
            "unless training.rate_scaling is set",
            highlight=False,
        )
    console.print(tables.plan_table(table))
    if kinds:
        console.print(tables.kinds_table(kinds))
    gate = values.stages.gate
    if gate is not None:
        console.print(
            f"Rounds and totals are the most: a stage ends when {gate.when(values.validation_metric)}.",
            highlight=False,
        )
    if any(not row.get("cache_fits", True) for row in table):
        console.print(
            "Outputs of frozen blocks that do not fit are computed in each step; fewer levers.views need less space."
        )
    if levers:
        console.print(tables.levers_table(levers))
    heads = next((row for row in parts(costs[-1]) if row["part"] == "projection"), None)
    if heads is not None and heads["exchange_share"] > 0.5:
        console.print(
            f"The projection heads are {heads['exchange_share']:.0%} of the bytes that the last stage exchanges; "
            "a smaller model.projection.hidden makes them smaller."
        )


def partition(spec: Spec = None, override: Overrides = None, as_json: Json = False) -> None:
    """Show how the training examples are divided among clients: sizes, and a histogram of the labels."""
    from lwfed.data.digests import FileDigests, version_of
    from lwfed.data.incomplete import usable_of
    from lwfed.data.left_out import UNREADABLE
    from lwfed.data.partition import describe, split_validation
    from lwfed.round.shares import readable_examples, shares_of
    from lwfed.steps.counting import lacking_shares
    from lwfed.steps.sources import client_sources, hashed, left_out, server_source, with_num_clients
    from lwfed.store.opening import open_store

    values = load_spec(spec, overrides=override or [])
    if values.federation.partition.kind == "local" and values.federation.clients > 1:
        raise SpecError("a local partition divides nothing: each client has its own folder", remedy="see data.root")
    store = open_store(values.store.uri)
    with Display(make_console(stderr=as_json)) as display:
        source = server_source(values, emit=display)
        version = version_of(source, hashed(source, FileDigests(environment.cache_folder()), emit=display))
    examples = readable_examples(source, "train", version=version, model=values.model, store=store)
    bad = {example.id for example in source.examples("train")} - {example.id for example in examples}
    values = with_num_clients(values, source, bad=bad)
    examples, others = usable_of(examples, model=values.model, incomplete=values.data.incomplete)
    examples, validation = split_validation(examples, fraction=values.data.validation_fraction)
    shares = shares_of(
        examples,
        kind=values.federation.partition,
        num_clients=values.federation.clients,
        seed=str(values.seed),
        validation_fraction=values.data.validation_fraction,
    )
    shares = {client: shares[client] for client in values.federation.eligible_ids}
    unused = len(examples) - sum(map(len, shares.values()))
    clients = describe(examples, shares=shares, classes=source.classes)
    others += Counter({UNREADABLE: len(bad)})
    missing = left_out([source, *client_sources(values).values()], missing=others, unused=unused)
    lacks = lacking_shares(examples, shares, model=values.model)
    if as_json:
        print_json(
            {
                "partition": values.federation.partition.model_dump(mode="json"),
                "clients": clients,
                "num_validation": len(validation) or len(source.examples("validation")),
                "left_out": missing,
                "lacks": lacks,
            }
        )
        return
    _draw_partition(clients, kind=values.federation.partition.kind)
    if part := tables.taking_part(values.federation):
        make_console().print(part)
    if validation:
        make_console().print(f"{len(validation)} further examples are set apart for validation")
    if missing:
        make_console().print(left_out_text(missing))
    for line in lacks_text(lacks, {item["client"]: item["num_examples"] for item in clients}):
        make_console().print(line, highlight=False)


def _draw_partition(clients: list[dict[str, Any]], *, kind: str) -> None:
    console = make_console()
    sizes = [item["num_examples"] for item in clients]
    labelled = any(item["labels"] for item in clients)
    title = f"{kind}: {sum(sizes)} examples, {len(sizes)} clients"
    table = make_table(title, left=("client",), right=("examples",))
    table.add_column("")
    if labelled:
        table.add_column("labels")
    for item in clients:
        bar = ("#" if console.options.ascii_only else "█") * max(1, round(BAR * item["num_examples"] / max(sizes)))
        cells = [item["client"], str(item["num_examples"]), bar]
        if labelled:
            cells.append("  ".join(f"{name} {count}" for name, count in item["labels"].items() if count))
        table.add_row(*cells)
    console.print(table)


def presets() -> None:
    """List the presets that ship with lwfed, and their variants: PRESET@VARIANT, several joined by @."""
    table = make_table(left=("preset", "strategy", "rounds", "data", "encoders", "clients"))
    for name in preset_names():
        values = load_spec(name)
        encoders = ", ".join(encoder.arch or encoder.family for encoder in values.model.encoders.values())
        table.add_row(
            name + (" (default)" if name == DEFAULT_PRESET else ""),
            values.strategy,
            " ".join(map(str, values.stages.rounds)),
            values.data.source,
            encoders,
            str(values.federation.num_clients or "one per group"),
        )
    variants = make_table("variants: PRESET@VARIANT", left=("presets", "variants", "what they change"), overflow="fold")
    for group in all_variants():
        variants.add_row(" ".join(group.of), " ".join(group.variants), group.about)
    for each in (table, variants):
        make_console().print(each)


def _opened(spec: RunSpec) -> Source | None:
    """Opens the server's data, or returns None if there is no such folder. Raises DataError if they are broken.

    A bucket must be there.
    """
    from lwfed.round.shares import SERVER, root_for
    from lwfed.steps.sources import server_source

    root = root_for(spec.data.root, SERVER)
    try:
        if root is not None and not root.startswith(S3):
            Path(root).expanduser().lstat()
    except FileNotFoundError:
        return None
    except OSError:
        pass  # opening it tells what is wrong
    return server_source(spec)


def _num_classes(spec: RunSpec, source: Source | None) -> int | None:
    if spec.model.objective.kind != "supervised":
        return None
    return data_source(spec.data.source).num_classes if source is None else len(source.classes)
