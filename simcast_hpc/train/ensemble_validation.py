"""Validation of a denoiser during training: small ensembles of a few validation windows, scored as in evaluation."""

import math
from typing import Any

import numpy as np
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.named_tensors import Tensors, parameter_names, read_parameters
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.inference.trained_ensemble import TrainedAutoencoder, TrainedEnsemble, denoiser
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.train.ema import EMA
from simcast_hpc.verification.counting import count
from simcast_hpc.verification.protocols import protocol_for
from simcast_hpc.verification.scores import scores
from simcast_hpc.verification.sufficient_statistics import merge

_PREFIX = "model."


class EnsembleValidation:
    """Samples and scores ensembles of the same windows each time.

    Every rank holds the complete denoiser in fp32, in addition to its share of training, and samples its share of the
    windows. Members are functions of the sampling seed, the window and their number; torch's generators are not used,
    so validation does not change training.
    """

    def __init__(self, config: TrainConfig, autoencoder: TrainedAutoencoder, student: TrainedModel):
        """Choose windows spread evenly over the split ``val``.

        Raises:
            ConfigError: the split has no window.
            DataError: the data cannot be used.
        """
        self.config, section, sequence = config, config.diffusion.validation, config.sequence
        self.source: WindowSource = open_windows(
            config.data, split="val", frames=sequence.frames_in + sequence.frames_out
        )
        if not len(self.source):
            raise ConfigError(
                f"diffusion.validation.every_steps={section.every_steps}: {config.data.root} has no window of split val"
            )
        count = min(section.windows, len(self.source))
        self.indices = [number * len(self.source) // count for number in range(count)]
        sampling = config.sampling.model_copy(
            update={"members": section.members, "precision": "fp32", "cuda_graph": False}
        )
        network = denoiser(config, channels=autoencoder.config.autoencoder.model.latent_channels)
        ensemble = TrainedEnsemble(network.eval().requires_grad_(False), config, autoencoder, student, sampling, "")
        self.ensemble = ensemble.sampled_by(sampling)
        spec = target_spec(config.data)
        self.protocol = protocol_for(
            "validation", spec.threshold_codes(), spec.threshold_labels(), unit=spec.thresholds.unit
        )

    def scores(self, weights: Tensors, ranks: TorchRanks) -> dict[str, float]:
        """Return the scores of these weights, complete on every rank, by the names of ``verification.scores``.

        ``crps`` is the fair estimator; ``csi/<threshold>`` and ``csi/mean`` are pooled over windows and lead times.
        Undefined scores, such as the CSI of a threshold that is neither observed nor forecast, are omitted. A
        collective.
        """
        self.ensemble.network.load_state_dict(weights)
        share = self.indices[ranks.rank :: ranks.size]
        frames_in, parts = self.config.sequence.frames_in, []
        with ranks.together():
            self.ensemble.on(ranks.device)
            for index in share:
                codes = torch.from_numpy(np.asarray(self.source.read(index)))[None]
                members = self.ensemble.members(codes[:, :frames_in], range(self.ensemble.sampling.members))
                event = self.source.key(index).event
                parts.append(count(codes[:, frames_in:], members.cpu(), protocol=self.protocol, events=[event]))
            self.ensemble.on(torch.device("cpu"))
        statistics = merge([part for gathered in ranks.gather(parts) for part in gathered])
        return {name: value for name, value in scores(statistics).items() if _is_logged(name) and math.isfinite(value)}


class ValidationHook:
    """Writes the validation scores of the moving average, or of the weights without one."""

    def __init__(
        self,
        validation: EnsembleValidation,
        engine: Any,
        ranks: TorchRanks,
        ema: EMA | None,
        writer: MetricsWriter | None,
    ):
        self.validation, self.engine, self.ranks, self.ema, self.writer = validation, engine, ranks, ema, writer

    def __call__(self, step: int, _report: object) -> None:
        """Sample, score and write. A collective."""
        scores = self.validation.scores(self._weights(), self.ranks)
        if self.writer is not None:
            self.writer.write(step, {f"validation/{name}": value for name, value in scores.items()})

    def _weights(self) -> Tensors:
        """Return the denoiser's weights on the host of every rank, gathered one tensor at a time."""
        if self.ema is None:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in read_parameters(self.engine)}
        else:
            owned = self.ema.tensors
            weights = {}
            for name in parameter_names(self.engine):
                gathered = self.ranks.gather(owned[name].cpu() if name in owned else None)
                weights[name] = next(tensor for tensor in gathered if tensor is not None)
        return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}


def _is_logged(name: str) -> bool:
    return name in ("crps", "mae", "spread_skill") or name.startswith("csi/")
