"""Gates: what ends a stage before its last round."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lwfed.spec.base import Section


class ImprovementGateSpec(Section):
    """Ends a stage early when a validation metric stops improving."""

    kind: Literal["improvement"] = "improvement"
    metric: str | None = Field(
        None, description="a validation metric; null: the objective's headline, such as validation/t2i/R@1"
    )
    patience: int = Field(3, ge=1, description="rounds without an improvement after which a stage ends")
    min_delta: float = Field(0.0, ge=0, allow_inf_nan=False, description="the smallest difference that improves it")
    restore: Literal["best", "last"] = Field("best", description="the round whose model is the stage's result")

    def when(self, headline: str) -> str:
        """Returns when it ends a stage, as the rest of a sentence; `headline` is the metric if it names none."""
        return f"{self.metric or headline} has not improved for {self.patience} rounds"


class MovementGateSpec(Section):
    """Ends a stage early when its trained parameters oscillate instead of advancing; needs no validation data."""

    kind: Literal["movement"] = "movement"
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="the stage ends when the effective movement is below it: 1 is a straight line, about "
        "1/sqrt(window) a random walk, 0 an oscillation",
    )
    window: int = Field(5, ge=2, description="number of latest rounds over which movement is measured")

    def when(self, headline: str) -> str:
        """Returns when it ends a stage, as the rest of a sentence."""
        return f"the effective movement over {self.window} rounds is below {self.threshold:g}"


_KEYS = {"improvement": ImprovementGateSpec.model_fields, "movement": MovementGateSpec.model_fields}


def _one_kind(gate: Any) -> Any:
    """Completes a gate's kind. Raises ValueError if it has keys of another kind: a stage has one gate."""
    if isinstance(gate, list):
        raise ValueError("a stage has one gate -> write one mapping, with `kind` improvement or movement")
    if not isinstance(gate, dict):
        return gate
    kind = gate.get("kind", "improvement")
    if isinstance(kind, str) and kind in _KEYS:
        foreign = [(key, other) for other, keys in _KEYS.items() for key in keys if key in gate.keys() - _KEYS[kind]]
        if foreign:
            key, other = foreign[0]
            raise ValueError(
                f"`{key}` is for `kind: {other}`, not {kind}, and a stage has one gate -> "
                f"set stages.gate.kind to {other}, or remove `{key}`"
            )
    return {"kind": kind, **gate}


GateSpec = Annotated[
    Annotated[ImprovementGateSpec | MovementGateSpec, Field(discriminator="kind")], BeforeValidator(_one_kind)
]
