"""Adversarial training on several ranks and ZeRO stages equals a plain torch loop within 1e-5."""

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from simcast_hpc.config import TrainConfig, from_mapping, read_config, to_yaml
from simcast_hpc.data.loader import micro_batches
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.models.autoencoder import Autoencoder, Posterior
from simcast_hpc.models.discriminator import Discriminator
from simcast_hpc.train.checkpoint import latest
from simcast_hpc.train.learning_rate import learning_rate
from simcast_hpc.train.stages.autoencoder_stage import AutoencoderStage
from tests.multi_rank.runs import losses, overrides, simcast, weights

pytestmark = pytest.mark.multi
_STEPS = 5
_COVERING = [(1, 0), (2, 3)]
_PRODUCT = [start for start in product((1, 2), range(4)) if start not in _COVERING]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> TrainConfig:
    """Five steps, the last three with the discriminator; a global batch is one micro-batch on one rank."""
    return from_mapping(
        TrainConfig,
        {
            "name": "tiny",
            "run_dir": str(tmp_path_factory.mktemp("unset")),
            "stage": "autoencoder",
            "max_steps": _STEPS,
            "data": {"dataset": "synthetic", "root": str(archive), "window_stride": 4},
            "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
            "autoencoder": {
                "model": {"widths": [4, 8], "blocks": 1, "latent_channels": 2, "groups": 2},
                "divergence_weight": 1e-3,
                "adversarial_start": 2,
                "adversarial_weight": 0.01,
                "discriminator": {"layers": 2, "width": 4, "groups": 2},
            },
            "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.01, "gradient_clip": 0.0},
            "batch": {"global_size": 4, "micro_size": 4},
            "engine": {"precision": "fp32"},
            "log": {"every_steps": 1},
        },
    )


class PlainLoop:
    """The same training in plain PyTorch: one loss differentiated by autograd, without engine or hooks."""

    def __init__(self, config: TrainConfig):
        self.config, chosen = config, config.autoencoder
        torch.manual_seed(config.seed)
        self.network, self.log_variance = Autoencoder(chosen.model), torch.nn.Parameter(torch.zeros(1))
        self.discriminator = Discriminator(chosen.discriminator)
        rate = {"lr": 0.0, "betas": config.optimizer.betas, "weight_decay": config.optimizer.weight_decay}
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), self.log_variance], **rate)
        self.opponent = torch.optim.AdamW(self.discriminator.parameters(), **rate)

    def run(self) -> list[float]:
        config = self.config
        source = open_windows(config.data, split="train", frames=AutoencoderStage.window_frames(config))
        stage = AutoencoderStage(config, source)
        batches = micro_batches(
            source, seed=config.seed, first_step=0, global_size=4, micro_size=4, rank=0, world_size=1
        )
        step_losses = []
        for step in range(_STEPS):
            rate = learning_rate(step, max_steps=_STEPS, config=config.optimizer)
            for group in (*self.optimizer.param_groups, *self.opponent.param_groups):
                group["lr"] = rate
            step_losses.append(self.step(*stage.sample(next(batches)), number=step))
        return step_losses

    def step(self, frames: Tensor, valid: Tensor, noise: Tensor, *, number: int) -> float:
        chosen = self.config.autoencoder
        reconstruction, posterior = self.network(frames, noise)
        error = ((frames - reconstruction).abs() * valid).sum()
        likelihood = (error / self.log_variance.exp() + self.log_variance * valid.sum()).squeeze() / len(frames)
        loss = likelihood + chosen.divergence_weight * self.divergence(posterior)
        adversarial = number >= chosen.adversarial_start
        if adversarial:
            fooled = -self.discriminator(reconstruction * valid).mean()
            last = self.network.decoder.head.weight
            ratio = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (likelihood, fooled)]
            weight = chosen.adversarial_weight * (ratio[0] / (ratio[1] + 1e-4)).clamp(0, 1e4)
            loss = loss + weight * fooled
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if adversarial:
            self.opponent.zero_grad()
            real, fake = self.discriminator(frames), self.discriminator((reconstruction * valid).detach())
            (0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())).backward()
            self.opponent.step()
        return loss.item()

    @staticmethod
    def divergence(posterior: Posterior) -> Tensor:
        mean, log_variance = posterior
        return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / len(mean)


@pytest.fixture(scope="module")
def plain(config: TrainConfig) -> tuple[PlainLoop, list[float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loop = PlainLoop(config)
    step_losses = loop.run()
    torch.set_num_threads(threads)
    return loop, step_losses


def assert_equals_plain(
    config: TrainConfig, plain: tuple[PlainLoop, list[float]], run_dir: Path, *, ranks: int, stage: int
) -> None:
    path = run_dir.parent / "autoencoder.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    changed = overrides(run_dir=run_dir, engine__zero_stage=stage, batch__micro_size=4 // ranks)
    simcast("torchrun" if ranks > 1 else "python", ranks, ["train", str(path), *changed])
    loop, wanted = plain
    assert losses(run_dir) == pytest.approx(wanted, rel=1e-5)
    exported = weights(run_dir)
    assert exported.keys() == loop.network.state_dict().keys()
    checkpoint = latest(run_dir / "checkpoints")
    assert checkpoint is not None
    auxiliary = checkpoint.auxiliary()
    # A softmax does not see what is added to all its scores: in exact arithmetic the bias of keys has no gradient, and
    # Adam makes steps of full length out of its rounding.
    seen = {name: t for name, t in loop.network.state_dict().items() if not name.endswith("attention.key.bias")}
    pairs = [(exported[name], tensor) for name, tensor in seen.items()]
    pairs += [(auxiliary[f"param/{name}"], tensor) for name, tensor in loop.discriminator.state_dict().items()]
    pairs.append((checkpoint.tensors("log_variance")["param"], loop.log_variance))
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-5


@pytest.mark.parametrize(("ranks", "stage"), _COVERING)
def test_ranks_and_stages_equal_plain_torch(ranks, stage, config, plain, tmp_path):
    assert_equals_plain(config, plain, tmp_path / "run", ranks=ranks, stage=stage)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), _PRODUCT)
def test_every_rank_and_stage_equals_plain_torch(ranks, stage, config, plain, tmp_path):
    assert_equals_plain(config, plain, tmp_path / "run", ranks=ranks, stage=stage)


def test_both_networks_are_trained(config, plain):
    """Otherwise the comparison with plain PyTorch would be trivial."""
    loop, _ = plain
    fresh = PlainLoop(config)
    for name in ("network", "discriminator"):
        before, after = getattr(fresh, name).state_dict(), getattr(loop, name).state_dict()
        assert max((before[key] - after[key]).abs().max().item() for key in before) > 1e-3
    assert loop.log_variance.item() != 0


def test_a_run_resumes_and_exports_its_scale_factor(config, tmp_path):
    path = tmp_path / "autoencoder.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    common = ["train", str(path)]
    simcast("python", 1, [*common, *overrides(run_dir=uninterrupted, checkpoint__every_steps=3)])
    shutil.copytree(uninterrupted, interrupted)
    # State after a kill at step 3: the checkpoint of step 3, and neither weights nor marker.
    newest = latest(interrupted / "checkpoints")
    assert newest is not None and newest.step == _STEPS
    for left in (*newest.path.iterdir(), interrupted / "DONE.json", interrupted / "weights" / "model.safetensors"):
        left.unlink()
    newest.path.rmdir()
    simcast("python", 1, [*common, *overrides(run_dir=interrupted, checkpoint__every_steps=3)])
    assert all(
        torch.equal(a, b) for a, b in zip(weights(uninterrupted).values(), weights(interrupted).values(), strict=True)
    )
    first, second = latest(uninterrupted / "checkpoints"), latest(interrupted / "checkpoints")
    assert first is not None and second is not None
    assert all(torch.equal(first.auxiliary()[name], tensor) for name, tensor in second.auxiliary().items())
    with safe_open(uninterrupted / "weights" / "model.safetensors", framework="pt") as file:
        scale = float(file.metadata()["scale_factor"])
    assert scale == pytest.approx(measured_scale(uninterrupted), rel=1e-6)


@torch.no_grad()
def measured_scale(run_dir: Path) -> float:
    """Return 1 over the deviation of sampled latents' distribution, in one pass over the same frames."""
    from simcast_hpc.data.sample_order import random_integer
    from simcast_hpc.distill.cut_windows import to_frames

    config = read_config(TrainConfig, run_dir / "config.yaml")
    network = Autoencoder(config.autoencoder.model)
    network.load_state_dict(weights(run_dir))
    source = open_windows(config.data, split="train", frames=8)
    windows = [torch.from_numpy(source.read(index)) for index in range(len(source))]
    chosen = [random_integer(i, seed=config.seed, purpose="scale-factor-frame", choices=8) for i in range(len(source))]
    frames = torch.stack([window[k] for window, k in zip(windows, chosen, strict=True)])[:, None]
    posterior = network.encode(to_frames(frames).values)
    variance = posterior.log_variance.double().exp().mean() + posterior.mean.double().var(correction=0)
    return 1 / variance.sqrt().item()
