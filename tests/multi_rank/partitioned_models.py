"""Run on two ranks under ZeRO 3: models that are built with and without ``engine.zero_init``, and two steps of each.

Rank 0 appends one JSON line per case to ``models.jsonl``; ``test_partitioned_init.py`` checks them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.config import CasFormerConfig, EarthformerConfig, SimVPConfig, StackConvStem
from simcast_hpc.distributed.engine import build_engine, set_learning_rate
from simcast_hpc.distributed.named_tensors import read_state
from simcast_hpc.distributed.partitioned_init import build_partitioned, is_partitioned
from simcast_hpc.distributed.process_group import TorchRanks, end_rank, join_process_group
from simcast_hpc.models import build_model
from simcast_hpc.models.casformer import CasFormer
from simcast_hpc.models.warm_start import warm_start
from tests.archives import tiny_config

_SIMVP = SimVPConfig(hidden_spatial=4, hidden_temporal=12, temporal_blocks=2, groups=2, base="extrapolation")
_EARTHFORMER = EarthformerConfig(
    grid=(16, 16), width=8, heads=2, stem=StackConvStem(widths=(4, 8), scales=(2, 1), convolutions=(1, 1))
)
_CASFORMER = CasFormerConfig(frame_width=8, frame_depth=1, frame_heads=2, width=12, depth=1, heads=2)
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "simvp": lambda: build_model(_SIMVP, frames_in=3, frames_out=4),
    "earthformer": lambda: build_model(_EARTHFORMER, frames_in=3, frames_out=4),
    "casformer": lambda: CasFormer(_CASFORMER, frames=4, channels=2),
}
CASES = [(name, precision) for precision in ("bf16", "fp32") for name in NETWORKS]


class Module(torch.nn.Module):
    """A network and a loss of its forecast of noise."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.model = name, NETWORKS[name]()

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the mean square of the output for ``[1, 4, 2, 16, 16]``, of a forecast also its mean error."""
        dtype = self.model.parameters().__next__().dtype
        if self.name == "casformer":
            frames = noise.to(dtype)
            return (self.model(frames, torch.tensor([3]), frames).float() - noise).square().mean()
        forecast = self.model(noise[:, :3, :1].sigmoid().to(dtype if self.name == "earthformer" else torch.float32))
        return (forecast.float() - noise[:, :, :1].sigmoid()).square().mean()


def _train(name: str, precision: str, ranks: TorchRanks, folder: Path, *, zero_init: bool) -> dict[str, Any]:
    options = {"zero_stage": 3, "precision": precision, "zero_init": zero_init}
    config = tiny_config(folder, engine=options, batch={"global_size": 2, "micro_size": 1})
    torch.manual_seed(3)
    module = build_partitioned(lambda: Module(name), config, ranks)
    random = torch.randint(2**40, ()).item()
    partitioned = [is_partitioned(parameter) and not parameter.numel() for parameter in module.parameters()]
    if name != "casformer":
        torch.manual_seed(4)
        other = NETWORKS[name]()
        warm_start(module.get_submodule("model"), dict(list(other.state_dict().items())[::2]))
    engine = build_engine(module, config, ranks)
    states = []
    for step in range(2):
        set_learning_rate(engine, 0.0 if step == 0 else 1e-2)
        noise = torch.randn(1, 4, 2, 16, 16, generator=torch.Generator().manual_seed(10 * step + ranks.rank))
        engine.backward(engine(noise))
        engine.step()
        states.append({f"{k}/{n}": t.clone() for n, state in read_state(engine) for k, t in state.items()})
    return {"random": random, "partitioned": all(partitioned), "states": states}


def main(folder: Path, cases: list[tuple[str, str]]) -> None:
    """Run the cases."""
    ranks = join_process_group(timeout_minutes=2)
    for name, precision in cases:
        whole, parts = (_train(name, precision, ranks, folder, zero_init=value) for value in (False, True))
        pairs = list(zip(whole["states"], parts["states"], strict=True))
        equal = [[key for key in one if not torch.equal(one[key], other[key])] for one, other in pairs]
        moved = max(
            (one - other).abs().max().item()
            for one, other in zip(*(state.values() for state in whole["states"]), strict=True)
        )
        line = {
            "case": [name, precision],
            "random": whole["random"] == parts["random"],
            "partitioned": [whole["partitioned"], parts["partitioned"]],
            "unequal": equal,
            "moved": moved,
        }
        if ranks.is_first:
            with (folder / "models.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    ranks.leave()
    end_rank(0)  # Gloo's threads can abort the shutdown of the interpreter


if __name__ == "__main__":
    main(Path(sys.argv[1]), [CASES[int(word)] for word in sys.argv[2:]])
