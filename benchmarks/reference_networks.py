"""Reference implementations of the networks, imported unchanged from checkouts and built from their configuration.

OpenSTL's packages import many modules that its SimVP does not use; these are replaced by stubs. CasCast's CasFormer
requires timm: ``pip install --no-deps --target FOLDER timm``, with FOLDER on ``PYTHONPATH``, leaves our pins unchanged.
"""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.stub_imports import stub_imports
from simcast_hpc.diffusion import make_schedule, spaced_timesteps
from simcast_hpc.models.published_weights import released_config

# The import root of each checkout relative to its root, and a file that must exist below it.
SOURCES = {"earthformer": "src", "openstl": "", "cascast": ""}
REQUIRED_FILES = {
    "earthformer": "earthformer/cuboid_transformer/cuboid_transformer.py",
    "openstl": "openstl/models/simvp_model.py",
    "cascast": "networks/casformer.py",
}
STUBBED = {
    "earthformer": (),
    "openstl": ("timm", "torchvision", "imageio", "pytorch_lightning", "huggingface_hub", "lightning", "fvcore"),
    "cascast": ("torchvision", "huggingface_hub", "fvcore", "wandb"),
}


class ReferenceNetwork(NamedTuple):
    """A network of a checkout and the configuration that it was built from."""

    network: nn.Module
    config: dict[str, Any]


def check_checkout(name: str, root: Path) -> None:
    """Check that a folder is a checkout of ``name``.

    Raises:
        FileNotFoundError: a required file does not exist.
    """
    required = root / SOURCES[name] / REQUIRED_FILES[name]
    if not required.is_file():
        raise FileNotFoundError(
            f"--{name} {root} does not contain {required.relative_to(root)}; it must be the root of a checkout"
        )


def earthformer(root: Path, *, frames: Sequence[int], size: int) -> ReferenceNetwork:
    """Return the model of the published configuration for T and T' frames of ``size`` x ``size`` pixels.

    The constructor takes one pattern per level; the published file has one pattern for all levels.
    """
    config = dict(released_config("earthformer"))
    levels = len(config["enc_depth"])
    patterns = {"self_pattern": "enc_attn", "cross_self_pattern": "dec_self_attn", "cross_pattern": "dec_cross_attn"}
    for name, argument in patterns.items():
        config[f"{argument}_patterns"] = [config.pop(name)] * levels
    config["checkpoint_level"] = (
        0  # as in the published training file; the constructor's default recomputes activations
    )
    for name, count in zip(("input_shape", "target_shape"), frames, strict=True):
        config[name] = [count, size, size, 1]
    with _importable("earthformer", root):
        module = importlib.import_module("earthformer.cuboid_transformer.cuboid_transformer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ReferenceNetwork(module.CuboidTransformerModel(**config), config)


def simvp(root: Path, *, frames: Sequence[int], size: int) -> ReferenceNetwork:
    """Return OpenSTL's SimVP with the IncepU translator at the sizes of its SEVIR weights; its output has T frames."""
    config = released_config("simvp") | {"in_shape": [frames[0], 1, size, size], "aft_seq_length": frames[1]}
    with _importable("openstl", root):
        module = importlib.import_module("openstl.models.simvp_model")
    return ReferenceNetwork(module.SimVP_Model(**config), config)


def casformer(root: Path, *, size: int) -> ReferenceNetwork:
    """Return CasCast's denoiser at its SEVIR size for latents of ``size`` x ``size``.

    Layers that are initialized with zeros are sampled, so that outputs can be compared.
    """
    config = released_config("casformer") | {"input_size": size}
    with _importable("cascast", root):
        module = importlib.import_module("networks.casformer")
    network = module.CasFormer("DiT-custom", config)
    for parameter in network.parameters():
        if not parameter.any() and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    return ReferenceNetwork(network, config)


def cascast_sampler(root: Path) -> Callable[[nn.Module, Tensor, int, int, float, float], Tensor]:
    """Return a function that calls CasCast's ensemble loop: ``(network, condition, members, steps, guidance, clip)``.

    The loop samples members sequentially with classifier-free guidance, from noise of a generator with seed 0. Its
    scheduler, whose package requires a model hub, is replaced by a DDIM step in plain PyTorch, pointwise on latents.
    """
    with _importable("cascast", root):
        loop = importlib.import_module("models.latent_diffusion_model_eval").latent_diffusion_model_eval.denoise

    def sample(network: nn.Module, condition: Tensor, members: int, steps: int, guidance: float, clip: float) -> Tensor:
        model = SimpleNamespace(model={"casformer": network}, sample_noise_scheduler=_Ddim(steps, clip), debug=False)
        with contextlib.redirect_stdout(io.StringIO()):
            return loop(model, condition, condition, bs=1, cfg=guidance, ensemble_member=members)[0]

    return sample


class _Ddim:
    """Deterministic DDIM (Song et al., equation 12) with the scheduler interface of CasCast's loop.

    As in CasCast's scheduler, the direction is the predicted noise, also where the clean latent was clipped.
    """

    init_noise_sigma = 1.0

    def __init__(self, steps: int, clip: float):
        self.schedule = make_schedule()
        self.timesteps = spaced_timesteps(self.schedule, steps)
        self.next_timestep = dict(zip(self.timesteps, [*self.timesteps[1:], -1], strict=True))
        self.clip = clip

    def scale_model_input(self, latents: Tensor, _timestep: int) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def step(self, noise: Tensor, timestep: int, latents: Tensor) -> SimpleNamespace:
        """Return ``prev_sample``, the latents at the next timestep."""
        current, following = self.schedule.alpha_bar(timestep), self.schedule.alpha_bar(self.next_timestep[timestep])
        clean = ((latents - (1 - current) ** 0.5 * noise) / current**0.5).clamp(-self.clip, self.clip)
        return SimpleNamespace(prev_sample=following**0.5 * clean + (1 - following) ** 0.5 * noise)


@contextlib.contextmanager
def _importable(name: str, root: Path) -> Iterator[None]:
    """Import from a checkout, with stubs for the packages that it does not use, inside the block."""
    check_checkout(name, root)
    source = str(root / SOURCES[name])
    sys.path.insert(0, source)
    try:
        with stub_imports(*STUBBED[name]), torch.random.fork_rng([]):
            yield
    finally:
        sys.path.remove(source)
