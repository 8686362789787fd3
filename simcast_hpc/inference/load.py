"""What turns a finished run folder into a callable forecast; evaluation, report and prediction all begin here."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from simcast_hpc.config import FORECASTING, ConfigError, TrainConfig, read_config
from simcast_hpc.distill.rollout import roll_out
from simcast_hpc.distill.windows import to_frames
from simcast_hpc.models import build_model, grid_of
from simcast_hpc.storage.run_directory import RunDirectory, file_hash, reject_another

from .cuda_graph import Graphs

_OR = " or ".join(FORECASTING)


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, the configuration that made it, the hash of its weights and how many steps it was trained.

    Of published weights (``simcast convert``) the steps are unknown, None. On a CUDA device the second forecast of a
    size is recorded as a CUDA graph, which those after it replay.
    """

    network: torch.nn.Module
    config: TrainConfig
    weights_hash: str
    steps: int | None = None
    graphs: Graphs = field(default_factory=Graphs, compare=False, repr=False)

    @torch.no_grad()
    def forecast(self, codes: torch.Tensor, *, frames_out: int) -> torch.Tensor:
        """Return the forecast after uint8 codes ``[B, T, H, W]``: float32 ``[B, frames_out, H, W]`` in [0, 1].

        One pass where the network's horizon reaches; beyond it the network is rolled out (the teacher).
        Missing input pixels are 0 to the network, as in training.

        Raises:
            ConfigError: the network is made for another grid.
            ValueError: another number of frames than the network takes.
        """
        frames_in = self.config.sequence.frames_in
        if codes.shape[1] != frames_in:
            raise ValueError(f"{codes.shape[1]} frames given to a model of {frames_in}; give the last {frames_in}")
        self.reject_another_grid((codes.shape[2], codes.shape[3]))
        device = next(self.network.parameters()).device
        seen = to_frames(codes.to(device))
        everywhere = seen._replace(valid=torch.ones_like(seen.valid))

        def network(frames: torch.Tensor) -> torch.Tensor:
            return self.graphs.run(self.network, frames, network=self.network)

        return roll_out(network, everywhere, frames_out=frames_out).values

    def reject_another_grid(self, grid: tuple[int, int]) -> None:
        """Refuse frames of another grid (H, W) than the network is made for.

        Raises:
            ConfigError: names both grids.
        """
        own = grid_of(self.config.model)
        if own not in (None, grid):
            raise ConfigError(
                f"the {self.config.stage} {self.config.name} is made for frames of {own[0]} x {own[1]} pixels "
                f"(model.kind={self.config.model.kind}), the data's are {grid[0]} x {grid[1]}"
            )


def forecast_device() -> torch.device:
    """Return where forecasts are made: the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def config_of_run(run_dir: Path) -> TrainConfig:
    """Return the configuration of the training run in ``run_dir``.

    Raises:
        ConfigError: it is absent or damaged, or the folder is that of a pipeline; names the stages that may be meant.
    """
    reject_a_pipeline(run_dir)
    return read_config(TrainConfig, RunDirectory(run_dir).config)


def reject_a_pipeline(run_dir: Path) -> None:
    """Refuse the folder of a pipeline, whose stages are the runs; what is wrong otherwise is left to the reader.

    Raises:
        ConfigError: names the finished stages that forecast.
    """
    try:  # plain data, so that the pipeline of another version is known as one
        data = yaml.safe_load(RunDirectory(run_dir).config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    if not isinstance(data, dict) or TrainConfig.of_another_kind(data) is None:
        return
    finished = [str(run_dir / name) for name in data["stages"] or () if _forecasts(run_dir / str(name))]
    raise ConfigError(
        f"{run_dir} is a pipeline's folder; "
        + (
            f"name one of its forecasting stages: {', '.join(finished)}"
            if finished
            else "none of its forecasting stages is finished: run `simcast pipeline` to its end first"
        )
    )


def _forecasts(run_dir: Path) -> bool:
    folder = RunDirectory(run_dir)
    if not folder.weights.is_file():
        return False
    try:
        config = read_config(TrainConfig, folder.config)
    except ConfigError:
        return False
    # Students that hold out a fold of the events serve the diffusion's conditions alone.
    return config.stage in (*FORECASTING, "diffusion") and config.data.hold_out is None


def load_trained(run_dir: Path, *, device: torch.device | None = None) -> TrainedModel:
    """Return the model that a run of ``simcast train`` left in ``run_dir``, in fp32, evaluating, on ``device`` (CPU).

    Raises:
        ConfigError: the folder holds no finished run, or its weights do not fit its configuration.
    """
    reject_a_pipeline(run_dir)
    folder = RunDirectory(run_dir)
    if not folder.config.is_file() or not folder.weights.is_file():
        missing = folder.weights if folder.config.is_file() else folder.config
        raise ConfigError(f"{run_dir} is not a finished training run: there is no {missing}; run `simcast train` first")
    config = config_of_run(run_dir)
    if config.stage not in FORECASTING:
        raise ConfigError(f"{run_dir} holds the stage {config.stage}, which does not forecast; name a {_OR}")
    try:
        network = build_model(config.model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
    except ValueError as error:
        raise ConfigError(f"{folder.config} describes no model: {error}") from error
    weights_hash = file_hash(folder.weights)
    marker = folder.marker()
    if marker is None or marker.get("weights") != weights_hash:
        raise ConfigError(f"{folder.weights} is not what {folder.done} says; run `simcast train` again to finish it")
    reject_another({key: marker["inputs"].get(key) for key in config.science()}, config.science(), where=run_dir)
    try:
        network.load_state_dict(load_file(folder.weights))
    except (RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder.weights} does not fit {folder.config}: {error}") from error
    network.eval().requires_grad_(False)
    return TrainedModel(network.to(device or torch.device("cpu")), config, weights_hash, marker.get("steps"))
