"""One implementation of ``benchmarks.peers`` in a process of its own: the reference implementation or ours, timed.

    python -m benchmarks.peer_process '{"case": "simvp", "side": "ours", ...}'

The argument contains the fields of :class:`Task`; the output is one line of JSON. All sides build the reference network
from the same seed and use the same inputs. Ours loads the weights with ``load_public`` and frees the reference network
before the measurement. The forecast without gradients is saved to ``forecast``, where ``peers`` compares it.
"""

import dataclasses
import gc
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference_networks
from benchmarks.measurements import Seconds, elapsed, now, peak_memory
from benchmarks.providers import use_implementation
from simcast_hpc.diffusion import make_schedule, plan_steps, sample, spaced_timesteps
from simcast_hpc.models.published_weights import load_public

CHECKOUTS = {"simvp": "openstl", "earthformer": "earthformer", "casformer": "cascast", "sampling": "cascast"}
GUIDANCE, CLIP = 2.0, 13.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """Arguments of one process.

    Attributes:
        side: ``reference``, ``ours`` or, on CUDA, ``ours, no kernels``.
        size: rows and columns in pixels, or of latents for CasFormer and sampling.
        batch: samples per step, or members of the ensemble.
        rounds: timed steps; with 0 only the forecast is saved.
        forecast: file of the forecast, or "".
    """

    case: str
    side: str
    checkout: str
    precision: str
    device: str
    frames: tuple[int, int]
    size: int
    batch: int
    rounds: int
    threads: int
    steps: int
    forecast: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network, its inputs, and how each implementation computes a forecast ``[B, T', C, H, W]`` from both."""

    name: str
    network: Callable[[], reference_networks.ReferenceNetwork]
    inputs: tuple[Tensor, ...]
    target: Tensor
    reference: Callable[..., Tensor]
    ours: Callable[..., Tensor] = lambda network, *inputs: network(*inputs)


def main() -> int:
    """Run the task of the command line and print the measurement as JSON."""
    fields = json.loads(sys.argv[1])
    task = Task(**fields | {"frames": tuple(fields["frames"])})
    torch.set_num_threads(task.threads)
    implementation = {"ours": "triton" if task.device == "cuda" else "reference", "ours, no kernels": "reference"}
    with use_implementation(implementation.get(task.side, "")), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(run(task)))
    return 0


def run(task: Task) -> dict[str, Any]:
    """Return the (wall, CPU) seconds of every round by part, and the peak memory in gigabytes."""
    # 1. Network and inputs
    problem = _problem(task)
    torch.manual_seed(0)
    built = problem.network()
    network = built.network
    if task.side != "reference":
        network = load_public(problem.name, built.config, network.state_dict())
    network = network.to(task.device)
    del built
    gc.collect()
    inputs, target = [x.to(task.device) for x in problem.inputs], problem.target.to(task.device)
    function = problem.reference if task.side == "reference" else problem.ours

    def forecast() -> Tensor:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
            return function(network, *inputs)

    # 2. Forecast for the comparison
    if task.forecast:
        network.eval()
        with torch.no_grad():
            torch.save(forecast().float().cpu(), task.forecast)
    # 3. Timed rounds, after one warm-up
    network.train(task.case != "sampling")
    times: dict[str, list[Seconds]] = {}
    peak_gb = 0.0
    for number in range(task.rounds + 1 if task.rounds else 0):
        network.zero_grad(set_to_none=True)
        with peak_memory(task.device) as peak:
            seconds = _ensemble(forecast, task) if task.case == "sampling" else _step(forecast, target, task)
        if number:
            peak_gb = max(peak_gb, peak[0])
            for part, one in seconds.items():
                times.setdefault(part, []).append(one)
    return {"times": times, "peak_gb": peak_gb}


def _step(forecast: Callable[[], Tensor], target: Tensor, task: Task) -> dict[str, Seconds]:
    start = now(task.device)
    loss = (forecast().float() - target).square().mean()
    forward = elapsed(start, task.device)
    loss.backward()
    step = elapsed(start, task.device)
    return {"forward": forward, "backward": Seconds(step.wall - forward.wall, step.cpu - forward.cpu), "step": step}


def _ensemble(forecast: Callable[[], Tensor], task: Task) -> dict[str, Seconds]:
    start = now(task.device)
    with torch.no_grad():
        forecast()
    return {"ensemble": elapsed(start, task.device)}


def _problem(task: Task) -> Problem:
    root = Path(task.checkout)
    reference_networks.check_checkout(CHECKOUTS[task.case], root)
    generator = torch.Generator().manual_seed(1)
    frames_in, frames_out = task.frames

    def random(batch: int, frames: int, channels: int) -> Tensor:
        return torch.rand(batch, frames, channels, task.size, task.size, generator=generator)

    if task.case in ("simvp", "earthformer"):
        build = {"simvp": reference_networks.simvp, "earthformer": reference_networks.earthformer}[task.case]
        return Problem(
            name=task.case,
            network=lambda: build(root, frames=task.frames, size=task.size),
            inputs=(random(task.batch, frames_in, 1),),
            target=random(task.batch, frames_out, 1),
            reference=_openstl(frames_out) if task.case == "simvp" else _channels_last,
        )
    batch = 1 if task.case == "sampling" else task.batch
    noisy, condition, noise = (random(batch, frames_out, 4) for _ in range(3))
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    problem = Problem(
        name="casformer",
        network=lambda: reference_networks.casformer(root, size=task.size),
        inputs=(noisy, timesteps, condition),
        target=noise,
        reference=lambda network, *inputs: network(*inputs),
    )
    if task.case == "casformer":
        return problem
    loop = reference_networks.cascast_sampler(root)
    return dataclasses.replace(
        problem,
        inputs=(condition,),
        reference=lambda network, condition: loop(network, condition, task.batch, task.steps, GUIDANCE, CLIP),
        ours=lambda network, condition: _batched(network, condition, task),
    )


def _openstl(frames_out: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return OpenSTL's forecast, which its method truncates to a horizon of at most the input's length."""
    return lambda network, frames: network(frames)[:, :frames_out]


def _channels_last(network: nn.Module, frames: Tensor) -> Tensor:
    return network(frames.movedim(2, -1).contiguous()).movedim(-1, 2)


def _batched(network: nn.Module, condition: Tensor, task: Task) -> Tensor:
    """Sample all members in one batch, from the initial noise of CasCast's loop."""
    start = torch.randn(task.batch, *condition.shape[1:], generator=torch.Generator().manual_seed(0))
    conditions = condition.expand(task.batch, -1, -1, -1, -1)
    zeros = torch.zeros_like(conditions)
    schedule = make_schedule()
    return sample(
        plan_steps("ddim", schedule, spaced_timesteps(schedule, task.steps)),
        lambda x, t: network(x, t, conditions),
        start.to(condition.device),
        unconditional=lambda x, t: network(x, t, zeros),
        guidance=GUIDANCE,
        clip=CLIP,
    ).latents


if __name__ == "__main__":
    sys.exit(main())
