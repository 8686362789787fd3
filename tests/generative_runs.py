"""Finished runs with random weights, in the files that ``simcast train`` writes, and ranks for a single process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from simcast_hpc.config import TrainConfig, to_yaml
from simcast_hpc.distributed.ranks import SingleRank
from simcast_hpc.inference.trained_ensemble import denoiser
from simcast_hpc.models import build_model
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from tests.archives import make_archive, random_codes, tiny_config, write_trained

AUTOENCODER: dict[str, Any] = {"model": {"widths": [4, 8], "blocks": 1, "latent_channels": 2, "groups": 2}}
SAMPLING: dict[str, Any] = {"steps": 4, "members": 5, "guidance": 1.5, "clip": 3.0}
DENOISER: dict[str, Any] = {
    "frame_width": 8, "frame_depth": 1, "frame_heads": 2, "width": 12, "depth": 1, "heads": 2,
}  # fmt: skip


CRPS: dict[str, Any] = {"mse_weight": 0.0, "crps_weight": 1.0, "thresholds": [], "weights": [1.0]}


class OneRank(SingleRank):
    """One rank without a process group, with the methods of :class:`TorchRanks` that need none."""

    device = torch.device("cpu")

    def broadcast(self, thing: Any) -> Any:
        return thing


def write_finished(config: TrainConfig, network: torch.nn.Module, inputs: Mapping[str, str], **metadata: str) -> Path:
    """Write the run directory of a finished run with these weights, and return it."""
    directory = RunDirectory(config.run_dir)
    directory.weights.parent.mkdir(parents=True)
    directory.config.write_text(to_yaml(config), encoding="utf-8")
    save_file(network.state_dict(), directory.weights, metadata=metadata)
    directory.finish({**config.science(), **inputs}, steps=3, weights=file_hash(directory.weights), **metadata)
    return config.run_dir


def randomize(network: torch.nn.Module, *, seed: int) -> torch.nn.Module:
    """Add noise to all weights in place, because many layers are initialized to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def make_runs(folder: Path, root: Path, *, seed: int = 1) -> Path:
    """Write finished runs ``student``, ``autoencoder`` and ``diffusion`` on an archive into ``folder``."""
    data = {"data": {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}}
    torch.manual_seed(seed)
    write_trained(tiny_config(folder / "student", **data))
    autoencoder = tiny_config(folder / "autoencoder", stage="autoencoder", **data, autoencoder=AUTOENCODER)
    torch.manual_seed(2)
    write_finished(autoencoder, Autoencoder(autoencoder.autoencoder.model), {}, scale_factor="1.25")
    config = diffusion_config(folder / "diffusion", folder, root)
    hashes = {name: file_hash(RunDirectory(folder / name).weights) for name in ("autoencoder", "student")}
    write_finished(config, randomize(denoiser(config, channels=2), seed=3), hashes)
    return folder


def write_noise_run(run_dir: Path, root: Path, *, base: str = "extrapolation", **over) -> Path:
    """Write a finished run ``direct`` with two noise channels and random weights."""
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    model = tiny_config(run_dir).model.model_dump(mode="json") | {"noise_channels": 2, "base": base}
    sampling = {"members": 5}
    config = tiny_config(run_dir, data=data, model=model, loss=CRPS, sampling=sampling, **over)
    torch.manual_seed(1)
    network = build_model(config.model, frames_in=3, frames_out=4)
    return write_finished(config, randomize(network, seed=2), {})


def diffusion_config(run_dir: Path, runs: Path, root: Path, **overrides: Any) -> TrainConfig:
    """Return a run of stage ``diffusion`` on the finished runs in ``runs``; ``overrides`` apply to its section."""
    data = {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None}
    inputs = {"autoencoder": str(runs / "autoencoder"), "student": str(runs / "student"), "casformer": DENOISER}
    return tiny_config(run_dir, stage="diffusion", data=data, diffusion=inputs | overrides, sampling=SAMPLING)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of five events of random pixel values, some of them missing."""
    return make_archive(tmp_path_factory.mktemp("ensemble"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs ``student``, ``autoencoder`` and ``diffusion``."""
    return make_runs(tmp_path_factory.mktemp("runs"), root)
