"""Beginning from the weights of a model with another horizon."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .earthformer import Earthformer


@dataclass(frozen=True)
class Started:
    """What became of each tensor of a model: its names, by where the values come from."""

    copied: tuple[str, ...]
    repeated: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        repeated = f", repeated in time: {', '.join(self.repeated)}" if self.repeated else ""
        fresh = f"as drawn: {', '.join(self.fresh)}" if self.fresh else "none as drawn"
        return f"{len(self.copied)} tensors copied{repeated}, {fresh}"


def start_from(model: nn.Module, known: Mapping[str, Tensor]) -> Started:
    """Give ``model`` the weights of one with another horizon, as far as they fit.

    Tensors of equal name and shape are copied. A table with a row for each frame of the forecast takes the known rows
    in turn, from the first again after the last, as a roll-out calls the known model again. All others stay as drawn.

    Args:
        model: changed in place.
        known: the state dict of the other model, any floating dtype.
    """
    own = model.state_dict()
    in_time = model.output_time_tables() if isinstance(model, Earthformer) else []
    values: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name in known and known[name].shape == tensor.shape:
            values[name] = known[name]
        elif name in in_time and name in known and known[name].shape[1:] == tensor.shape[1:]:
            rows = known[name]
            values[name] = rows.repeat(-(-len(tensor) // len(rows)), 1)[: len(tensor)]
    model.load_state_dict({name: value.to(own[name]) for name, value in values.items()}, strict=False)
    repeated = tuple(name for name in values if known[name].shape != own[name].shape)
    return Started(
        copied=tuple(name for name in values if name not in repeated),
        repeated=repeated,
        fresh=tuple(name for name in own if name not in values),
    )
