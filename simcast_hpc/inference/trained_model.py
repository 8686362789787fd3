"""Load finished runs as callable models: check the run directory, build the network and load its weights."""

import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simcast_hpc.config import FORECASTING, ConfigError, TrainConfig, read_config
from simcast_hpc.config.yaml_files import read_plain_mapping
from simcast_hpc.distill.cut_windows import Frames, to_frames
from simcast_hpc.distill.rollout import roll_out
from simcast_hpc.models import BaseForecast, SimVP, build_model, grid_of, missing_value, network_of
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.storage.compile_caches import check_caches
from simcast_hpc.storage.run_directory import RunDirectory, file_hash, reject_another

from .cuda_graph import GraphCache


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with the configuration of its run, the SHA-256 of its weights and its optimizer steps.

    ``steps`` is None for published weights (``simcast convert``). On a CUDA device the second forecast of a shape is
    recorded as a CUDA graph, which later forecasts of that shape replay.
    """

    network: torch.nn.Module
    config: TrainConfig
    weights_hash: str
    steps: int | None = None
    graphs: GraphCache = field(default_factory=GraphCache, compare=False, repr=False)

    @torch.no_grad()
    @fp32_precision()
    def forecast(self, codes: Tensor, *, frames_out: int, base: Tensor | None = None) -> Tensor:
        """Return the forecast after ``codes``, float32 ``[B, frames_out, H, W]`` in [0, 1].

        One forward pass within the network's horizon; beyond it the network is rolled out. Missing input pixels have
        the model's :func:`.missing_value`, as in training. fp32 is IEEE fp32, without TF32.

        Args:
            codes: ``[B, T, H, W]``, uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing).
            frames_out: number of lead times.
            base: base forecast of the first pass, a part of that of a larger domain: see :meth:`base_forecast`.

        Raises:
            ConfigError: the network cannot take this grid.
            TypeError: ``codes`` is neither uint8 nor floating.
            ValueError: wrong number of axes or of frames.
        """
        given = iter(() if base is None else (base,))

        def network(inputs: Tensor) -> Tensor:
            return self.graphs.run(self._pass, inputs, *islice(given, 1), network=self.network)

        missing = missing_value(self.config.model)
        return roll_out(
            network, self.frames(codes), frames_out=frames_out, missing=missing, masks_forecast=False
        ).values

    @torch.no_grad()
    @fp32_precision()
    def base_forecast(self, codes: Tensor, *, side: int) -> Tensor | None:
        """Return the base forecast of a domain that is forecast in tiles; None for a network without ``model.base``.

        The motion is that of the whole domain, with the windows that a tile would have, so that tiles have no seams and
        echoes move from one tile into the next.

        Args:
            codes: ``[B, T, H, W]``, uint8 encoded values (255 missing) or floats in [0, 1] (NaN missing).
            side: shorter side of a tile in pixels.

        Returns:
            fp32 ``[B, slots, 1, H, W]`` in [0, 1] on the device of the network.
        """
        if not isinstance(self.network, BaseForecast):
            return None
        frames = to_frames(codes.to(next(self.network.parameters()).device))
        return self.network.base_forecast(frames.fill(missing_value(self.config.model))[:, :, None], side=side)

    def _pass(self, inputs: Tensor, base: Tensor | None = None) -> Tensor:
        return self.network(inputs) if base is None else self.network(inputs, None, base)

    def frames(self, codes: Tensor) -> Frames:
        """Return checked frames on the device of the network; arguments and errors as :meth:`forecast`."""
        if codes.dtype != torch.uint8 and not codes.is_floating_point():
            raise TypeError(f"codes have dtype {codes.dtype}; give uint8 encoded values or floats in [0, 1]")
        frames_in = self.config.sequence.frames_in
        if codes.dim() != 4 or codes.shape[1] != frames_in:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}; [B, {frames_in}, H, W] is needed: give the last {frames_in} "
                "frames"
            )
        self.check_grid((codes.shape[2], codes.shape[3]))
        return to_frames(codes.to(next(self.network.parameters()).device))

    @property
    def grid_multiple(self) -> int:
        """Height and width must be multiples of this number; 1 for a network that accepts only one grid."""
        network = network_of(self.network)
        return network.downsampling if isinstance(network, SimVP) else 1

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check that the network can take frames of ``grid`` (H, W).

        Raises:
            ConfigError: names the grid and what is needed.
        """
        own = grid_of(self.config.model)
        if own not in (None, grid):
            raise ConfigError(
                f"the {self.config.stage} {self.config.name} takes frames of {own[0]} x {own[1]} pixels "
                f"(model.kind={self.config.model.kind}), got {grid[0]} x {grid[1]}"
            )
        check_multiple(grid, self.grid_multiple, f"{self.config.stage} {self.config.name}")


def check_multiple(grid: tuple[int, int], multiple: int, name: str) -> None:
    """Check that height and width are multiples of ``multiple``.

    Raises:
        ConfigError: names the grid and the multiple.
    """
    if grid[0] % multiple or grid[1] % multiple:
        raise ConfigError(
            f"the {name} takes heights and widths that are multiples of {multiple}, got {grid[0]} x {grid[1]}"
        )


def forecast_device() -> torch.device:
    """Return the device for forecasts: the first CUDA device if there is one, else the CPU.

    Raises:
        UntrustedFolderError: the device is a GPU, and another user can write to a cache of compiled kernels.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    check_caches(os.environ, kernels=True)
    return torch.device("cuda")


def config_of_run(run_dir: Path) -> TrainConfig:
    """Return the configuration of the training run in ``run_dir``.

    A run whose data set description was found in its data folder uses its own copy of it: the folder may have moved.

    Raises:
        ConfigError: it is absent or damaged, or the directory is a pipeline's; names the stages that may be meant.
    """
    reject_pipeline_directory(run_dir)
    directory = RunDirectory(run_dir)
    config = read_config(TrainConfig, directory.config)
    if config.data.dataset is not None or not directory.dataset.is_file():
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"dataset": str(directory.dataset)})})


def reject_pipeline_directory(run_dir: Path) -> None:
    """Raise an error if ``run_dir`` is the directory of a pipeline, whose stages are the runs.

    Other problems are not reported here.

    Raises:
        ConfigError: names the finished stages that forecast.
    """
    try:  # plain data, so that the pipeline of another version is recognized too
        data = read_plain_mapping(RunDirectory(run_dir).config)
    except ConfigError:
        return
    if TrainConfig.other_kind(data) is None:
        return
    finished = [str(run_dir / name) for name in data["stages"] or () if _forecasts(run_dir / str(name))]
    raise ConfigError(
        f"{run_dir} is the directory of a pipeline; "
        + (
            f"name one of its forecasting stages: {', '.join(finished)}"
            if finished
            else "none of its forecasting stages is finished: run `simcast pipeline` to its end first"
        )
    )


def _forecasts(run_dir: Path) -> bool:
    directory = RunDirectory(run_dir)
    if not directory.weights.is_file():
        return False
    try:
        config = read_config(TrainConfig, directory.config)
    except ConfigError:
        return False
    # Students that hold out a fold of the events only serve as conditions of the diffusion.
    return config.stage in (*FORECASTING, "diffusion") and config.data.hold_out is None


class FinishedRun(NamedTuple):
    """A checked run: configuration, weights by name, their metadata and SHA-256, and the marker ``DONE.json``."""

    config: TrainConfig
    weights: dict[str, Tensor]
    metadata: dict[str, str]
    weights_hash: str
    marker: dict[str, Any]

    def load_into(self, network: torch.nn.Module, run_dir: Path) -> None:
        """Load the weights into ``network`` and put it into evaluation mode.

        Raises:
            ConfigError: they do not fit it.
        """
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ConfigError(f"the weights in {run_dir} do not fit its configuration: {error}") from error
        network.eval().requires_grad_(False)


def read_finished(run_dir: Path, stages: tuple[str, ...]) -> FinishedRun:
    """Read a finished run of one of ``stages``.

    Raises:
        ConfigError: the run is unfinished, damaged or of another stage, or its weights or configuration were changed.
    """
    reject_pipeline_directory(run_dir)
    directory = RunDirectory(run_dir)
    if not directory.config.is_file() or not directory.weights.is_file():
        missing = directory.weights if directory.config.is_file() else directory.config
        raise ConfigError(f"{run_dir} is not a finished training run: {missing} is missing; run `simcast train` first")
    config = config_of_run(run_dir)
    if config.stage not in stages:
        raise ConfigError(f"{run_dir} is a run of stage {config.stage}; a finished {' or '.join(stages)} is needed")
    weights_hash, marker = file_hash(directory.weights), directory.marker()
    if marker is None or marker.get("weights") != weights_hash:
        raise ConfigError(
            f"{directory.weights} does not match {directory.done}; run `simcast train` again to finish the run"
        )
    reject_another({key: marker["inputs"].get(key) for key in config.science()}, config.science(), where=run_dir)
    try:
        with safe_open(directory.weights, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return FinishedRun(config, weights, dict(file.metadata() or {}), weights_hash, marker)
    except SafetensorError as error:
        raise ConfigError(f"{directory.weights} cannot be read: {error}") from error


def load_trained(run_dir: Path, *, device: torch.device | None = None) -> TrainedModel:
    """Return the deterministic model of a finished run, in fp32 and evaluation mode, on ``device`` (default: CPU).

    Raises:
        ConfigError: the directory has no finished run, its weights do not fit its configuration, or its network has
            noise channels.
    """
    model = load_network(run_dir, device=device)
    if noise := model.config.model.noise_channels:
        raise ConfigError(
            f"{run_dir} is an ensemble (model.noise_channels={noise}); a run of a deterministic model is needed here"
        )
    return model


def load_network(run_dir: Path, *, device: torch.device | None = None) -> TrainedModel:
    """Return the network of a finished run of a forecasting stage; its noise channels are not checked.

    Raises:
        ConfigError: the directory has no finished run, or its weights do not fit its configuration.
    """
    run = read_finished(run_dir, FORECASTING)
    config = run.config
    try:
        network = build_model(config.model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
    except ValueError as error:
        raise ConfigError(f"{RunDirectory(run_dir).config} describes no valid model: {error}") from error
    run.load_into(network, run_dir)
    return TrainedModel(network.to(device or torch.device("cpu")), config, run.weights_hash, run.marker.get("steps"))
