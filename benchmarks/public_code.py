"""Networks of public checkouts, imported as they stand, built from their own configuration. Nothing of them is copied.

Earthformer's file needs what we have. OpenSTL's packages import much that its SimVP does not use, for which empty
modules stand in. CasCast's CasFormer is made of timm's layers, so timm must be importable: without touching our pins,
``pip install --no-deps --target FOLDER timm``, and FOLDER on ``PYTHONPATH``.
"""

import contextlib
import importlib
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.released_code import emptied
from simcast_hpc.diffusion import make_schedule, spaced_timesteps
from simcast_hpc.models.published_weights import released_config

# The folder of each checkout that its modules are imported from, below its root, and a file that must be there.
SOURCES = {"earthformer": "src", "openstl": "", "cascast": ""}
MARKS = {
    "earthformer": "earthformer/cuboid_transformer/cuboid_transformer.py",
    "openstl": "openstl/models/simvp_model.py",
    "cascast": "networks/casformer.py",
}
UNUSED = {
    "earthformer": (),
    "openstl": ("timm", "torchvision", "imageio", "pytorch_lightning", "huggingface_hub", "lightning", "fvcore"),
    "cascast": ("torchvision", "huggingface_hub", "fvcore", "wandb"),
}


class PublicNetwork(NamedTuple):
    """A network of a checkout and the public configuration that it was built from."""

    network: nn.Module
    config: dict[str, Any]


def check_checkout(name: str, root: Path) -> None:
    """Refuse a folder that is no checkout of ``name``.

    Raises:
        FileNotFoundError: names the file that should be there.
    """
    wanted = root / SOURCES[name] / MARKS[name]
    if not wanted.is_file():
        raise FileNotFoundError(f"--{name} {root} holds no {wanted.relative_to(root)}; name a checkout's root")


def commit_of(root: Path) -> str:
    """Return the short hash of a checkout's commit, or ``unknown``."""
    git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    told = subprocess.run(git, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def earthformer(root: Path, *, frames: Sequence[int], size: int) -> PublicNetwork:
    """Return the model for the released configuration at T and T' frames of ``size`` x ``size`` pixels.

    Its constructor takes one pattern a level, where the released file names one for all.
    """
    config = dict(released_config("earthformer"))
    levels = len(config["enc_depth"])
    patterns = {"self_pattern": "enc_attn", "cross_self_pattern": "dec_self_attn", "cross_pattern": "dec_cross_attn"}
    for name, argument in patterns.items():
        config[f"{argument}_patterns"] = [config.pop(name)] * levels
    config["checkpoint_level"] = 0  # as the released training file has it; the constructor's default recomputes
    for name, count in zip(("input_shape", "target_shape"), frames, strict=True):
        config[name] = [count, size, size, 1]
    with _importable("earthformer", root):
        module = importlib.import_module("earthformer.cuboid_transformer.cuboid_transformer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PublicNetwork(module.CuboidTransformerModel(**config), config)


def simvp(root: Path, *, frames: Sequence[int], size: int) -> PublicNetwork:
    """Return OpenSTL's SimVP with the IncepU translator at the sizes of its SEVIR weights; it makes T of T frames."""
    config = released_config("simvp") | {"in_shape": [frames[0], 1, size, size], "aft_seq_length": frames[1]}
    with _importable("openstl", root):
        module = importlib.import_module("openstl.models.simvp_model")
    return PublicNetwork(module.SimVP_Model(**config), config)


def casformer(root: Path, *, size: int) -> PublicNetwork:
    """Return CasCast's denoiser at its SEVIR size for latents of ``size`` x ``size``.

    Its output layers begin at zero; here they are drawn, so that outputs can be compared.
    """
    config = released_config("casformer") | {"input_size": size}
    with _importable("cascast", root):
        module = importlib.import_module("networks.casformer")
    network = module.CasFormer("DiT-custom", config)
    for parameter in network.parameters():
        if not parameter.any() and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    return PublicNetwork(network, config)


def cascast_sampler(root: Path) -> Callable[[nn.Module, Tensor, int, int, float, float], Tensor]:
    """Return a call of the checkout's own ensemble loop: ``(network, condition, members, steps, guidance, clip)``.

    It draws one member after the other, each under guidance from two networks' worth of batch, and starts from the
    normal numbers of a generator of seed 0. A DDIM step in plain PyTorch stands in for its scheduler, whose package
    wants a model hub; it is pointwise on latents.
    """
    with _importable("cascast", root):
        loop = importlib.import_module("models.latent_diffusion_model_eval").latent_diffusion_model_eval.denoise

    def draw(network: nn.Module, condition: Tensor, members: int, steps: int, guidance: float, clip: float) -> Tensor:
        model = SimpleNamespace(model={"casformer": network}, sample_noise_scheduler=_Ddim(steps, clip), debug=False)
        with contextlib.redirect_stdout(io.StringIO()):
            return loop(model, condition, condition, bs=1, cfg=guidance, ensemble_member=members)[0]

    return draw


class _Ddim:
    """Deterministic DDIM (Song et al., equation 12) with what CasCast's loop asks of a scheduler.

    As its own does, it goes on in the direction of the predicted noise, whatever was clipped.
    """

    init_noise_sigma = 1.0

    def __init__(self, steps: int, clip: float):
        self.schedule = make_schedule()
        self.timesteps = spaced_timesteps(self.schedule, steps)
        self.following = dict(zip(self.timesteps, [*self.timesteps[1:], -1], strict=True))
        self.clip = clip

    def scale_model_input(self, latents: Tensor, _timestep: int) -> Tensor:
        """Return the latents as they are."""
        return latents

    def step(self, noise: Tensor, timestep: int, latents: Tensor) -> SimpleNamespace:
        """Return ``prev_sample``, the latents at the next timestep."""
        now, then = self.schedule.alpha_bar(timestep), self.schedule.alpha_bar(self.following[timestep])
        clean = ((latents - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-self.clip, self.clip)
        return SimpleNamespace(prev_sample=then**0.5 * clean + (1 - then) ** 0.5 * noise)


@contextlib.contextmanager
def _importable(name: str, root: Path) -> Iterator[None]:
    """Let imports inside find a checkout's modules, and empty ones for what they import and do not use."""
    check_checkout(name, root)
    source = str(root / SOURCES[name])
    sys.path.insert(0, source)
    try:
        with emptied(*UNUSED[name]), torch.random.fork_rng([]):
            yield
    finally:
        sys.path.remove(source)
