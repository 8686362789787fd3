"""Finished runs of freshly drawn weights: student, autoencoder and denoiser, as `simcast train` leaves them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from simcast_hpc.config import TrainConfig, to_yaml
from simcast_hpc.inference.ensemble import denoiser
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from tests.archives import make_archive, random_codes, tiny_config, write_trained

AUTOENCODER: dict[str, Any] = {"model": {"widths": [4, 8], "blocks": 1, "latent_channels": 2, "groups": 2}}
SAMPLING: dict[str, Any] = {"steps": 4, "members": 5, "guidance": 1.5, "clip": 3.0}
DENOISER: dict[str, Any] = {
    "frame_width": 8, "frame_depth": 1, "frame_heads": 2, "width": 12, "depth": 1, "heads": 2,
}  # fmt: skip


def leave(config: TrainConfig, network: torch.nn.Module, inputs: Mapping[str, str], **beside: str) -> Path:
    """Leave in ``config.run_dir`` what a finished run with these weights leaves."""
    folder = RunDirectory(config.run_dir)
    folder.weights.parent.mkdir(parents=True)
    folder.config.write_text(to_yaml(config), encoding="utf-8")
    save_file(network.state_dict(), folder.weights, metadata=beside)
    folder.finish({**config.science(), **inputs}, steps=3, weights=file_hash(folder.weights), **beside)
    return config.run_dir


def randomised(network: torch.nn.Module, *, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def make_runs(folder: Path, root: Path) -> Path:
    """Leave finished runs ``student``, ``autoencoder`` and ``diffusion`` in ``folder``, of an archive's windows."""
    shared = {"data": {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}}
    torch.manual_seed(1)
    write_trained(tiny_config(folder / "student", **shared))
    coder = tiny_config(folder / "autoencoder", stage="autoencoder", **shared, autoencoder=AUTOENCODER)
    torch.manual_seed(2)
    leave(coder, Autoencoder(coder.autoencoder.model), {}, scale_factor="1.25")
    config = diffusion_config(folder / "diffusion", folder, root)
    hashes = {name: file_hash(RunDirectory(folder / name).weights) for name in ("autoencoder", "student")}
    leave(config, randomised(denoiser(config, channels=2), seed=3), hashes)
    return folder


def diffusion_config(run_dir: Path, runs: Path, root: Path, **over: Any) -> TrainConfig:
    """Return a run of the stage ``diffusion`` on the finished runs in ``runs``; ``over`` lies over its section."""
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    chosen = {"autoencoder": str(runs / "autoencoder"), "student": str(runs / "student"), "casformer": DENOISER}
    return tiny_config(run_dir, stage="diffusion", data=data, diffusion=chosen | over, sampling=SAMPLING)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of five events of random codes, some of them missing."""
    return make_archive(tmp_path_factory.mktemp("ensemble"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs ``student``, ``autoencoder`` and ``diffusion``."""
    return make_runs(tmp_path_factory.mktemp("runs"), root)
