"""Initialize a model with the weights of a model that has another forecast horizon."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .earthformer import Earthformer


@dataclass(frozen=True)
class WarmStart:
    """Names of a model's tensors by the source of their values."""

    copied: tuple[str, ...]
    repeated: tuple[str, ...]
    random: tuple[str, ...]

    def __str__(self) -> str:
        repeated = f", repeated along time: {', '.join(self.repeated)}" if self.repeated else ""
        return f"{len(self.copied)} tensors copied{repeated}, randomly initialized: {', '.join(self.random) or 'none'}"


def warm_start(model: nn.Module, weights: Mapping[str, Tensor]) -> WarmStart:
    """Load the weights of a model with another horizon into ``model``, as far as they fit.

    Tensors of equal name and shape are copied. A table with one row per forecast frame is filled with the rows of the
    other model, repeated as often as needed, because a rollout applies the other model repeatedly. All other tensors
    keep their random initialization.

    Args:
        model: changed in place.
        weights: the state dict of the other model, any floating dtype.
    """
    own = model.state_dict()
    time_tables = model.output_time_tables() if isinstance(model, Earthformer) else []
    values: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name in weights and weights[name].shape == tensor.shape:
            values[name] = weights[name]
        elif name in time_tables and name in weights and weights[name].shape[1:] == tensor.shape[1:]:
            rows = weights[name]
            values[name] = rows.repeat(-(-len(tensor) // len(rows)), 1)[: len(tensor)]
    model.load_state_dict({name: value.to(own[name]) for name, value in values.items()}, strict=False)
    repeated = tuple(name for name in values if weights[name].shape != own[name].shape)
    return WarmStart(
        copied=tuple(name for name in values if name not in repeated),
        repeated=repeated,
        random=tuple(name for name in own if name not in values),
    )
