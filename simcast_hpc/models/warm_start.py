"""Initialize a model with the weights of a model that has another forecast horizon."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from simcast_hpc.distributed.partitioned_init import full_shape, load_values

from .base_forecast import BaseForecast, network_of
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
    keep their initialization. The same holds for the output layer of a model with a base forecast if a hidden layer has
    another shape, as in a SimVP with another number of time slots: it then starts from the base forecast.

    Args:
        model: changed in place.
        weights: the state dict of the other model, any floating dtype.
    """
    own, network = model.state_dict(keep_vars=True), network_of(model)  # partitioned parameters keep their shape
    prefix = "network." if isinstance(model, BaseForecast) else ""
    time_tables = [prefix + name for name in network.time_tables()] if isinstance(network, Earthformer) else []
    values: dict[str, Tensor] = {}
    for name, shape in {name: full_shape(tensor) for name, tensor in own.items()}.items():
        if name in weights and weights[name].shape == shape:
            values[name] = weights[name]
        elif name in time_tables and name in weights and weights[name].shape[1:] == shape[1:]:
            rows = weights[name]
            values[name] = rows.repeat(-(-shape[0] // len(rows)), 1)[: shape[0]]
    changed_weights = [name for name in own if name not in values and not name.endswith(".bias.table")]
    if isinstance(model, BaseForecast) and changed_weights:
        # The output of other hidden layers under the trained output layer would be noise on the base forecast.
        values = {name: value for name, value in values.items() if not name.startswith(f"{prefix}head.")}
    load_values(model, values)
    repeated = tuple(name for name in values if weights[name].shape != full_shape(own[name]))
    return WarmStart(
        copied=tuple(name for name in values if name not in repeated),
        repeated=repeated,
        random=tuple(name for name in own if name not in values),
    )
