"""Validation of a denoiser during training: small ensembles of a few validation windows, scored as in evaluation."""

import torch

from simcast_hpc.config import TrainConfig
from simcast_hpc.data.open_windows import target_spec
from simcast_hpc.distributed.named_tensors import Tensors
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.inference.trained_ensemble import TrainedAutoencoder, TrainedEnsemble, denoiser
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.verification.counting import count
from simcast_hpc.verification.protocols import protocol_for
from simcast_hpc.verification.scores import scores
from simcast_hpc.verification.sufficient_statistics import merge

from .validation import Validation, combine_windows, defined

HINT = "set diffusion.validation.every_steps=0"


class EnsembleValidation(Validation):
    """Samples and scores ensembles of the same windows each time.

    Every rank holds the complete denoiser in fp32, in addition to its share of training, and samples its share of the
    windows. Members are functions of the sampling seed, the window and their number; torch's generators are not used,
    so validation does not change training.
    """

    def __init__(self, config: TrainConfig, autoencoder: TrainedAutoencoder, student: TrainedModel):
        """Choose windows spread evenly over the split ``val``.

        Raises:
            ConfigError: the split has no window.
        """
        section = config.diffusion.validation
        super().__init__(config, windows=section.windows, every_steps=section.every_steps, hint=HINT)
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
        frames_in, parts = self.config.sequence.frames_in, {}
        with ranks.together():
            self.ensemble.on(ranks.device)
            for index in self.share(ranks):
                codes = self.window(index)
                members = self.ensemble.members(codes[:, :frames_in], range(self.ensemble.sampling.members))
                event = self.source.key(index).event
                parts[index] = count(codes[:, frames_in:], members.cpu(), protocol=self.protocol, events=[event])
            self.ensemble.on(torch.device("cpu"))
        by_key = combine_windows(parts, ranks, lambda statistics: scores(merge(statistics)))
        return defined(by_key, filter(_is_logged, by_key))


def _is_logged(name: str) -> bool:
    return name in ("crps", "mae", "spread_skill") or name.startswith("csi/")
