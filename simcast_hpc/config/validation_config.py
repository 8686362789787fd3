"""Validation during training of the forecasting stages: how often, on what, and which weights it selects."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .stage_sections import FORECASTING, Added, Section, Unit

_DEFAULT_VALIDATIONS = 20
_FEWEST_STEPS = 20


class ValidationConfig(Section, read_by=FORECASTING):
    """Scores of a fixed set of windows of the split ``val`` during training; they select the exported weights.

    The moving average of the weights is validated where there is one. The teacher is scored on its rollout to
    ``sequence.frames_out``, because the student is trained on that rollout. The test split is never read.
    """

    every_steps: Added[Annotated[int | None, Unit("optimizer steps")]] = Field(default=None, ge=0)
    """Number of optimizer steps between validations; the last step is always validated. null: 5 % of `max_steps`, at
    least 20. 0 disables validation and requires `export: last`."""
    windows: Added[Annotated[PositiveInt, Unit("windows")]] = 64
    """Number of windows, evenly spaced over the split ``val`` and the same at every validation; all windows if the
    split has fewer."""
    protocol: Added[str] = "global"
    """Verification protocol, one of those of ``simcast evaluate --protocol``."""
    score: Added[str] = "csi/mean"
    """Score that selects the best weights: a score of the protocol with a better direction, such as `csi/mean`, `mse`,
    `mae` or `csi/<threshold>`, or `loss`, the training loss on the validation windows. A mean is over the thresholds
    that are observed often enough in these windows."""
    export: Added[Literal["best", "last"]] = "best"
    """Exported weights: those with the best `validation.score`, or those of the last step."""
    patience: Added[Annotated[PositiveInt | None, Unit("validations")]] = None
    """Number of consecutive validations without a better score after which training ends (early stopping); null trains
    all steps."""

    @model_validator(mode="after")
    def _selection_needs_validation(self) -> Self:
        if self.every_steps == 0 and self.export == "best":
            raise ValueError(
                "validation.export=best requires validation; set validation.export=last, or validation.every_steps to "
                "null or a number above 0"
            )
        if self.every_steps == 0 and self.patience is not None:
            raise ValueError(
                f"validation.patience={self.patience} has no effect with validation.every_steps=0; remove it, or set "
                "validation.every_steps to null or a number above 0"
            )
        return self

    def interval(self, max_steps: int) -> int:
        """Return the number of optimizer steps between validations of a run of ``max_steps``; 0 without validation."""
        if self.every_steps is not None:
            return self.every_steps
        return max(_FEWEST_STEPS, math.ceil(max_steps / _DEFAULT_VALIDATIONS))

    def validations(self, max_steps: int) -> int:
        """Return the number of validations of a run of ``max_steps``."""
        interval = self.interval(max_steps)
        return math.ceil(max_steps / interval) if interval else 0
