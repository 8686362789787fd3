"""Files with random weights in the layout of CasCast's published checkpoints, at any size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from simcast_hpc.models.casformer import position_table
from simcast_hpc.models.published_weights import public_keys
from tests.models.public_earthformer import PUBLIC

LEVELS = 4
AUTOENCODER: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
CASFORMER: dict[str, Any] = {
    "input_size": 4,
    "in_channels": 8,
    "mlp_ratio": 4.0,
    "learn_sigma": False,
    "out_channels": 8,
    "split_num": 2,
    "num_heads": 2,
    "single_heads_num": 2,
    "hidden_size": 16,
    "enc_hidden_size": 16,
    "patch_size": 2,
    "enc_depth": 1,
    "latent_depth": 1,
}
EARTHFORMER = {**PUBLIC, "input_shape": [3, 32, 32, 1], "target_shape": [2, 32, 32, 1]}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample_range": 13,
    "prediction_type": "epsilon",
}


def yaml_file(path: Path, casformer: Mapping[str, Any], autoencoder: Mapping[str, Any], **scheduler: Any) -> Path:
    """Write a configuration in the form of ``cascast_diffusion.yaml``."""
    parameters = {
        "diffusion_kwargs": {
            "noise_scheduler": {"DDPMScheduler": {**SCHEDULER, **scheduler}},
            "classifier_free_guidance": {"p_uncond": 0.1, "guidance_weight": 1},
        },
        "sub_model": {
            "casformer": {"arch": "DiT-custom", "config": dict(casformer)},
            "autoencoder_kl": dict(autoencoder),
        },
    }
    content = {"trainer": {"batch_size": 8}, "model": {"type": "latent_diffusion_model", "params": parameters}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def random_weights(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, Tensor]:
    """Return weights under public keys; matrices are scaled so that activations stay of order 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        weights[key] = torch.randn(shape, generator=generator) * (fan_in**-0.5 if len(shape) > 1 else 0.1)
        if key.endswith("relative_position_index"):
            positions = torch.arange(shape[0])  # the cuboids of axial attention are one-dimensional
            weights[key] = positions[:, None] - positions[None, :] + shape[0] - 1
        elif key.endswith("pos_embed"):
            side = round(shape[1] ** 0.5)
            weights[key] = position_table(side, side, shape[2], like=weights[key])[None]
        elif ".norm" in key and key.endswith("weight"):
            weights[key] += 1
    return weights


def checkpoint(models: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return what CasCast's ``save_checkpoint`` writes, with NumPy scalars and the state of an optimizer."""
    optimizer = torch.optim.AdamW([parameter := torch.nn.Parameter(torch.ones(3))])
    parameter.sum().backward()
    optimizer.step()
    return {
        "step": 100_000,
        "epoch": 2,
        "model": dict(models),
        "optimizer": {name: optimizer.state_dict() for name in models},
        "lr_scheduler": {name: {"base_values": [5e-4], "metric": np.float64(0.1)} for name in models},
        "metric_best": np.float32(0.01),
        "amp_scaler": {},
    }


def write_small_files(folder: Path) -> dict[str, Path]:
    """Write the three files and their configurations at a reduced width, under the names that CasCast gives them."""
    shapes = {
        "autoencoder": public_keys("autoencoder", AUTOENCODER),
        "casformer": public_keys("casformer", CASFORMER),
        "earthformer": public_keys("earthformer", EARTHFORMER),
    }
    files = write_files(folder, shapes)
    (folder / "earthformer.yaml").write_text(yaml.safe_dump({"model": EARTHFORMER}), encoding="utf-8")
    yaml_file(folder / "cascast_diffusion.yaml", CASFORMER, AUTOENCODER)
    return files


def write_files(folder: Path, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, Path]:
    """Write random weights of these shapes as the three checkpoints of CasCast; the one of CasFormer holds two nets."""
    weights = {name: random_weights(shapes[name], seed=seed) for seed, name in enumerate(shapes)}
    earthformer = {f"net.{key}": tensor for key, tensor in weights["earthformer"].items()}
    discriminator = {"logvar": torch.zeros(()), "discriminator.main.0.weight": torch.zeros(4, 1, 4, 4)}
    contents = {
        "ckpts/autoencoder/ckpt.pth": {"autoencoder_kl": weights["autoencoder"], "lpipsWithDisc": discriminator},
        "ckpts/earthformer/ckpt.pth": {"EarthFormer_xy": earthformer},
        "checkpoint_best.pth": {"casformer": weights["casformer"], "autoencoder_kl": weights["autoencoder"]},
    }
    for name, models in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint(models), folder / name)
    autoencoder, earthformer_file, casformer = (folder / name for name in contents)
    return {"autoencoder": autoencoder, "earthformer": earthformer_file, "casformer": casformer}
