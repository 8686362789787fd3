"""Validation while a denoiser trains: small ensembles of a few held-out windows, scored as evaluations score."""

import math
from typing import Any

import numpy as np
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.data.window_source import WindowSource
from simcast_hpc.distributed.named_tensors import Tensors, parameter_names, read_parameters
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.inference.ensemble import TrainedAutoencoder, TrainedEnsemble, denoiser
from simcast_hpc.inference.load import TrainedModel
from simcast_hpc.monitoring.metrics import MetricsWriter
from simcast_hpc.train.ema import EMA
from simcast_hpc.verification.counting import count
from simcast_hpc.verification.protocols import protocol_for
from simcast_hpc.verification.scores import scores
from simcast_hpc.verification.sufficient_statistics import merge

_PREFIX = "model."


class EnsembleValidation:
    """Draws ensembles of the same windows with the averaged weights, where there are some, and writes their scores.

    Every rank holds the whole denoiser for it, in fp32, beside its share of training, and draws its share of the
    windows. Members are functions of the sampling seed, the window and their number, and nothing is drawn from torch's
    generators: training goes on as it would have without.
    """

    def __init__(self, config: TrainConfig, autoencoder: TrainedAutoencoder, student: TrainedModel):
        """Choose windows spread evenly over the split ``val``.

        Raises:
            ConfigError: the split has no window.
            DataError: the data cannot be used.
        """
        self.config, chosen, sequence = config, config.diffusion.validation, config.sequence
        self.source: WindowSource = open_windows(
            config.data, split="val", frames=sequence.frames_in + sequence.frames_out
        )
        if not len(self.source):
            raise ConfigError(
                f"diffusion.validation.every_steps={chosen.every_steps}: {config.data.root} has no window of split val"
            )
        wanted = min(chosen.windows, len(self.source))
        self.indices = [number * len(self.source) // wanted for number in range(wanted)]
        sampling = config.sampling.model_copy(
            update={"members": chosen.members, "precision": "fp32", "cuda_graph": False}
        )
        network = denoiser(config, channels=autoencoder.config.autoencoder.model.latent_channels)
        plain = TrainedEnsemble(network.eval().requires_grad_(False), config, autoencoder, student, sampling, "")
        self.ensemble = plain.sampled_by(sampling)
        spec = target_spec(config.data)
        self.protocol = protocol_for(
            "validation", spec.threshold_codes(), spec.threshold_labels(), unit=spec.thresholds.unit
        )

    def scores(self, weights: Tensors, ranks: TorchRanks) -> dict[str, float]:
        """Return the scores of these whole weights, by the names of ``verification.scores``. A collective.

        ``crps`` is the fair one; ``csi/<threshold>`` and ``csi/mean`` are pooled over windows and leads. What is
        undefined, such as a CSI of what neither was seen nor forecast, is left out.
        """
        self.ensemble.network.load_state_dict(weights)
        mine = self.indices[ranks.rank :: ranks.size]
        frames_in, parts = self.config.sequence.frames_in, []
        with ranks.together():
            self.ensemble.on(ranks.device)
            for index in mine:
                codes = torch.from_numpy(np.asarray(self.source.read(index)))[None]
                members = self.ensemble.members(codes[:, :frames_in], range(self.ensemble.sampling.members))
                event = self.source.key(index).event
                parts.append(count(codes[:, frames_in:], members.cpu(), protocol=self.protocol, events=[event]))
            self.ensemble.on(torch.device("cpu"))
        whole = merge([part for share in ranks.gather(parts) for part in share])
        return {name: value for name, value in scores(whole).items() if _told(name) and math.isfinite(value)}


class ValidationHook:
    """Scores the weights after its step."""

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
        """Draw, score and write. A collective."""
        found = self.validation.scores(self._weights(), self.ranks)
        if self.writer is not None:
            self.writer.write(step, {f"validation/{name}": value for name, value in found.items()})

    def _weights(self) -> Tensors:
        """Return the whole denoiser's weights on the host of every rank, gathered one tensor at a time."""
        if self.ema is None:
            whole = {name: tensor.detach().cpu().clone() for name, tensor in read_parameters(self.engine)}
        else:
            mine = self.ema.tensors
            whole = {}
            for name in parameter_names(self.engine):
                held = self.ranks.gather(mine[name].cpu() if name in mine else None)
                whole[name] = next(tensor for tensor in held if tensor is not None)
        return {name.removeprefix(_PREFIX): tensor for name, tensor in whole.items() if name.startswith(_PREFIX)}


def _told(name: str) -> bool:
    return name in ("crps", "mae", "spread_skill") or name.startswith("csi/")
