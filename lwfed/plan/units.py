"""Units: the parts of a model that are trained or frozen, exchanged and stored as a whole.

A unit's name is the prefix of its tensors' names: `image.stem`, `image.blocks.3`, `image.norm`, `image.adapter.2`,
`image.projection`, `image.prediction` if losses are blended, `text.stem` ..., `fusion` if it has parameters,
`prediction`; `temperature` if it is learnt.

An adapter maps the feature of an encoder whose width grows with its depth to the projection head's input width. It is
named after the number of blocks that it follows: more blocks bring another adapter, or none once the widths agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.fusion import fusion_kind
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError


def depths_by_stage(spec: RunSpec, depths: Mapping[str, int]) -> list[dict[str, int]]:
    """Returns the number of blocks present at each stage.

    Args:
        spec: The experiment.
        depths: Modality -> number of blocks of its whole encoder.

    Returns:
        Modality -> number of blocks, for each of the spec's stages.

    Raises:
        SpecError: The blocks appended over all stages do not sum to the encoder's depth.
    """
    present = dict.fromkeys(spec.model.modalities, 0)
    stages = []
    for stage in range(1, spec.stages.count + 1):
        present = {m: present[m] + spec.model.encoders[m].blocks_at(stage) for m in present}
        stages.append(present)
    for modality, total in present.items():
        if total != depths[modality]:
            where = f"model.encoders.{modality}"
            raise SpecError(
                f"`{where}.blocks_per_stage` appends {total} blocks over {spec.stages.count} stages, "
                f"but the encoder has {depths[modality]}",
                remedy=f"make them sum to {depths[modality]}, or change the encoder's depth in `{where}.config`",
            )
    return stages


def units_of(model: ModelSpec, depth: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the units of a model, from input to output; `depth` is the number of blocks of each modality."""
    units: list[str] = []
    for modality, encoder in model.encoders.items():
        units += [f"{modality}.stem", *(f"{modality}.blocks.{i}" for i in range(depth[modality]))]
        if encoder_family(encoder.family).final_norm:
            units.append(f"{modality}.norm")
        if needs_adapter(encoder, depth[modality]):
            units.append(f"{modality}.adapter.{depth[modality]}")
        units.append(f"{modality}.projection")
        if model.blending is not None:
            units.append(f"{modality}.prediction")
    if model.objective.kind == "supervised":
        units += [*(["fusion"] if fusion_kind(model.objective.fusion).unit is not None else []), "prediction"]
    elif model.objective.learnable_temperature:
        units.append("temperature")
    return tuple(units)


def needs_adapter(encoder: EncoderSpec, depth: int) -> bool:
    """Returns whether an encoder's feature after `depth` blocks has another width than that of the whole encoder."""
    widths = encoder_family(encoder.family).widths
    if widths is None:
        return False
    of_depth = widths(encoder)
    return of_depth[depth] != of_depth[-1]


def is_adapter(unit: str) -> bool:
    """Returns whether a unit is an adapter."""
    return ".adapter." in unit


def group_of(unit: str) -> str:
    """Returns the module group whose learning rate a unit uses: a modality, `projection`, `prediction`, `temperature`.

    A fusion belongs to the group of the prediction head that it feeds, an adapter to that of the projection heads; the
    prediction heads of single modalities are in the fused one's group.
    """
    parts = unit.split(".")
    if parts[0] == "fusion":
        return "prediction"
    if is_adapter(unit):
        return "projection"
    return parts[-1] if parts[-1] in ("projection", "prediction") else parts[0]
