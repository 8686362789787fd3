"""One contender of ``benchmarks.peers`` in a process of its own: a public network or ours at its weights, timed.

    python -m benchmarks.peer_contenders '{"case": "simvp", "side": "public", ...}'

The fields are those of :class:`Task`; the answer is one line of JSON. Both sides draw the public network's weights and
the inputs from the same seeds, ours takes the weights through ``load_public`` and forgets the public network before
anything is measured. The forecast without gradients goes to the file that is named, where ``peers`` compares the two.
"""

import dataclasses
import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import public_code
from benchmarks.train_step import Contender, Seconds, one_step, peak_memory, seconds_now
from simcast_hpc.diffusion import make_schedule, plan_steps, sample, spaced_timesteps
from simcast_hpc.models.published_weights import load_public

CHECKOUTS = {"simvp": "openstl", "earthformer": "earthformer", "casformer": "cascast", "sampling": "cascast"}
GUIDANCE, CLIP = 2.0, 13.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process is asked for. ``size`` is in pixels, of latents for CasFormer; ``batch`` are members drawn.

    Without ``rounds`` the forecast alone is wanted.
    """

    case: str
    side: str
    checkout: str
    precision: str
    frames: tuple[int, int]
    size: int
    batch: int
    rounds: int
    threads: int
    steps: int
    forecast: str


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both ways to a forecast ``[B, T', C, H, W]``, of which one is run.

    ``public`` and ``ours`` are called with a network and the inputs.
    """

    name: str
    network: Callable[[], public_code.PublicNetwork]
    inputs: tuple[Tensor, ...]
    target: Tensor
    public: Callable[..., Tensor]
    ours: Callable[..., Tensor]


def main() -> int:
    """Run the task of the command line and print what was measured."""
    fields = json.loads(sys.argv[1])
    task = Task(**fields | {"frames": tuple(fields["frames"])})
    torch.set_num_threads(task.threads)
    print(json.dumps(run(task)))
    return 0


def run(task: Task) -> dict[str, object]:
    """Return the seconds of every round by part, as pairs of clock and processor, and the peak memory in gigabytes."""
    sides = _sides(task)
    torch.manual_seed(0)
    built = sides.network()
    network = built.network
    if task.side == "ours":
        network = load_public(sides.name, built.config, network.state_dict())
    del built
    gc.collect()
    forecast = getattr(sides, task.side)
    if task.case == "sampling":
        return _draw(task, network.eval(), forecast, sides)

    def loss() -> Tensor:
        with _precision(task):
            found = forecast(network, *sides.inputs)
        return (found.float() - sides.target).square().mean()

    if task.forecast:
        with torch.no_grad(), _precision(task):
            torch.save(forecast(network.eval(), *sides.inputs).float(), task.forecast)
    if not task.rounds:
        return {"times": {}, "peak_gb": 0.0}
    contender = Contender(name=task.side, network=network.train(), loss=loss, body="reference")
    found = [one_step(contender, "cpu") for _ in range(task.rounds + 1)][1:]
    times = {"forward": [f for f, _, _ in found], "backward": [b for _, b, _ in found]}
    times["step"] = [Seconds(*map(sum, zip(f, b, strict=True))) for f, b, _ in found]
    return {"times": times, "peak_gb": max(peak for *_, peak in found)}


def _draw(task: Task, network: nn.Module, draw: Callable[..., Tensor], sides: Sides) -> dict[str, object]:
    times, peaks = [], []
    with torch.no_grad():
        for number in range(max(1, task.rounds)):
            with peak_memory("cpu") as peak, _precision(task):
                began = seconds_now("cpu")
                members = draw(network, *sides.inputs)
                times.append(Seconds(*(b - a for a, b in zip(began, seconds_now("cpu"), strict=True))))
            peaks.append(peak[0])
            if number == 0 and task.forecast:
                torch.save(members.float(), task.forecast)
    return {"times": {"ensemble": times}, "peak_gb": max(peaks)}


def _precision(task: Task):
    return torch.autocast("cpu", torch.bfloat16) if task.precision == "bf16" else nullcontext()


def _sides(task: Task) -> Sides:
    root = Path(task.checkout)
    public_code.check_checkout(CHECKOUTS[task.case], root)
    generator = torch.Generator().manual_seed(1)
    frames_in, frames_out = task.frames

    def drawn(batch: int, frames: int, channels: int) -> Tensor:
        return torch.rand(batch, frames, channels, task.size, task.size, generator=generator)

    if task.case in ("simvp", "earthformer"):
        build = {"simvp": public_code.simvp, "earthformer": public_code.earthformer}[task.case]
        return Sides(
            name=task.case,
            network=lambda: build(root, frames=task.frames, size=task.size),
            inputs=(drawn(task.batch, frames_in, 1),),
            target=drawn(task.batch, frames_out, 1),
            public=_openstl(frames_out) if task.case == "simvp" else _features_last,
            ours=lambda network, frames: network(frames),
        )
    batch = 1 if task.case == "sampling" else task.batch
    noisy, condition, noise = (drawn(batch, frames_out, 4) for _ in range(3))
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    sides = Sides(
        name="casformer",
        network=lambda: public_code.casformer(root, size=task.size),
        inputs=(noisy, timesteps, condition),
        target=noise,
        public=lambda network, *inputs: network(*inputs),
        ours=lambda network, *inputs: network(*inputs),
    )
    if task.case == "casformer":
        return sides
    loop = public_code.cascast_sampler(root)
    return dataclasses.replace(
        sides,
        inputs=(condition,),
        public=lambda network, condition: loop(network, condition, task.batch, task.steps, GUIDANCE, CLIP),
        ours=lambda network, condition: _batched(network, condition, task),
    )


def _openstl(frames_out: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """OpenSTL's method cuts what the network forecasts; it trains on no longer horizon than its input here."""
    return lambda network, frames: network(frames)[:, :frames_out]


def _features_last(network: nn.Module, frames: Tensor) -> Tensor:
    return network(frames.movedim(2, -1).contiguous()).movedim(-1, 2)


def _batched(network: nn.Module, condition: Tensor, task: Task) -> Tensor:
    """Draw all members at once, from the normal numbers that CasCast's loop begins with."""
    start = torch.randn(task.batch, *condition.shape[1:], generator=torch.Generator().manual_seed(0))
    under = condition.expand(task.batch, -1, -1, -1, -1)
    nothing = torch.zeros_like(under)
    schedule = make_schedule()
    steps = plan_steps("ddim", schedule, spaced_timesteps(schedule, task.steps))
    return sample(
        steps,
        lambda x, t: network(x, t, under),
        start,
        unconditional=lambda x, t: network(x, t, nothing),
        guidance=GUIDANCE,
        clip=CLIP,
    ).latents


if __name__ == "__main__":
    sys.exit(main())
