"""Validation of the forecasting stages: scores and loss of a fixed set of windows, and scores of baselines."""

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simcast_hpc.baselines import load_baseline
from simcast_hpc.config import ConfigError, CropConfig, TrainConfig
from simcast_hpc.data.open_windows import pixel_spacing_km, step_minutes, target_spec
from simcast_hpc.distributed.named_tensors import Tensors
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.evaluation.dataset_protocols import protocols_of
from simcast_hpc.inference.noise_ensemble import NoiseEnsemble
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.models.fp32_precision import fp32_precision
from simcast_hpc.verification.counting import count
from simcast_hpc.verification.scores import is_higher_better, scores, supported_thresholds
from simcast_hpc.verification.sufficient_statistics import Statistics, merge

from .validation import Validation, combine_windows, defined

if TYPE_CHECKING:
    from .stages.forecast_stage import ForecastModule

logger = logging.getLogger(__name__)
LOSS = "loss"
_BASELINES = ("persistence", "extrapolation")
_LOGGED, _LOGGED_OF_ENSEMBLES = ("mse", "mae"), ("crps", "spread_skill")
_LOGGED_FAMILIES = ("csi/", "frequency_bias/")
# As in the evaluation: a threshold that is observed more rarely gives a noisy term of a mean.
_MIN_PIXELS, _MIN_EVENTS = 1000, 5
_SEED = 0
HINT = "set validation.every_steps=0 and validation.export=last"


class ForecastValidation(Validation):
    """Forecasts T_l frames of each window with a complete fp32 copy of the network on every rank.

    The forecast is that of the finished run: one pass within the network's horizon, a rollout beyond it; of a network
    with noise channels, ``sampling.members`` members, whose mean is scored. The loss is the training loss of the stage
    within its own horizon, without augmentation. Frames are validated whole; a network that takes only the grid of
    ``data.crop`` is validated on the center, without its margin.
    """

    def __init__(
        self, config: TrainConfig, module: "ForecastModule", sample: Callable[[Tensor, int], tuple[Tensor, ...]]
    ):
        """Choose the windows, and check protocol and score.

        Args:
            config: of the run, fitted to the grid of the data.
            module: a new module from a sample to the loss of the stage, in fp32; its submodule ``model`` forecasts.
            sample: maps a window, uint8 ``[1, T + T_l, H, W]``, and its index to the arguments of ``module``.

        Raises:
            ConfigError: no window, unknown protocol or score, or the network cannot take the grid.
        """
        section = config.validation
        super().__init__(config, windows=section.windows, every_steps=section.interval(config.max_steps), hint=HINT)
        self._module = module.eval().requires_grad_(False)
        self._sample = sample
        network = module.get_submodule("model")
        self._model: TrainedModel | NoiseEnsemble = TrainedModel(network, config, "")
        if config.model.noise_channels:
            self._model = NoiseEnsemble(network, config, config.sampling, "")
        self._crop = self._fit(config.data.cropping)
        self._module.margin = self._crop.margin if self._crop else 0
        spec = target_spec(config.data)
        self._spacing_km = pixel_spacing_km(config.data)
        (self.protocol,) = protocols_of(
            spec,
            [section.protocol],
            spacing_km=self._spacing_km,
            tables_only=not section.score.startswith(("ssim", "fss")),
            field="validation.protocol",
        )
        self._check_score(section.score)
        self._supported: list[str] | None = None
        self._baselines: dict[str, dict[str, float]] = {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data and, of an ensemble, the settings of its members: scores of others do not compare."""
        own, sampling = self.source.fingerprint, self.config.sampling
        if not self.config.model.noise_channels:
            return own
        return f"{own} (sampling.members={sampling.members}, sampling.seed={sampling.seed})"

    @property
    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Scores of persistence, and from two input frames of extrapolation, on the validation windows."""
        return self._baselines

    def prepare(self, ranks: TorchRanks) -> None:
        """Score the baselines, and find the thresholds that means are over. A collective.

        Raises:
            ConfigError: the score is undefined on these windows.
        """
        data, section = self.config.data, self.config.validation
        counted = {}
        for name in _BASELINES:
            baseline = load_baseline(
                name, target_spec(data).encoding, step_minutes=step_minutes(data), spacing_km=self._spacing_km
            )
            if getattr(baseline, "min_frames", 1) <= self.config.sequence.frames_in:
                counted[name], _ = self._count(baseline.forecast, ranks)
        # The observed thresholds are the same for all forecasts.
        first = counted[_BASELINES[0]]
        pixels = (first.hits + first.misses).sum(dim=(0, 2))
        observed = [label for label, number in zip(self.protocol.labels, pixels.tolist(), strict=True) if number]
        events = min(_MIN_EVENTS, len(first.events))
        self._supported = list(supported_thresholds(first, min_pixels=_MIN_PIXELS, min_events=events)) or observed
        name, _, label = section.score.partition("/")
        if (label == "mean" and not observed) or (label in self.protocol.labels and label not in observed):
            raise ConfigError(
                f"validation.score={section.score} is undefined on the {len(self.indices)} validation windows, in "
                f"which these thresholds are observed: {', '.join(observed) or 'none'}; choose another score, such as "
                "mse, or more validation.windows"
            )
        self._baselines = {
            name: self._logged(scores(one, mean_over=self._supported or None)) for name, one in counted.items()
        }
        logger.info(
            "validation: %d windows of %d events every %d steps, %s, mean over the thresholds %s %s",
            len(self.indices), len(first.events), self.every_steps, section.score, ", ".join(self._supported),
            self.protocol.unit,
        )  # fmt: skip

    def scores(self, weights: Tensors, ranks: TorchRanks) -> dict[str, float]:
        """Return scores by the names of ``verification.scores``, and ``loss``. A collective."""
        assert self._supported is not None, "prepare() was called"
        self._model.network.load_state_dict(weights)
        self._module.to(ranks.device)
        statistics, losses = self._count(self._model.forecast, ranks, loss=True)
        self._module.cpu()
        self._model.graphs.clear()
        mean = math.fsum(losses) / len(losses)
        return self._logged(scores(statistics, mean_over=self._supported or None)) | defined({LOSS: mean}, [LOSS])

    def _count(
        self, forecast: Callable[..., Tensor], ranks: TorchRanks, *, loss: bool = False
    ) -> tuple[Statistics, list[float]]:
        """Return statistics, and the loss of each window if it is requested, over all windows and ranks."""
        sequence, parts = self.config.sequence, {}
        devices = [ranks.device] if ranks.device.type == "cuda" else []
        with ranks.together(), torch.random.fork_rng(devices), torch.no_grad(), fp32_precision():
            for index in self.share(ranks):
                codes = self._cropped(self.window(index)).to(ranks.device)
                forecasts = forecast(codes[:, : sequence.frames_in], frames_out=sequence.frames_out)
                observed, forecasts = self._inner(codes[:, sequence.frames_in :]), self._inner(forecasts)
                event = self.source.key(index).event
                counted = count(observed, forecasts, protocol=self.protocol, events=[event])
                parts[index] = counted.to("cpu"), self._loss(codes, index) if loss else math.nan
        return combine_windows(parts, ranks, _merge_windows)

    def _loss(self, codes: Tensor, index: int) -> float:
        """Return the loss of one window; a loss with random numbers gets the same ones at every validation."""
        torch.manual_seed(_SEED)
        return float(self._module(*self._sample(codes, index)))

    def _fit(self, crop: CropConfig | None) -> CropConfig | None:
        """Return the square that is validated: None for whole frames, if the network can take them."""
        try:
            self._model.check_grid(self.source.grid)
        except ConfigError:
            if crop is None:
                raise
            return crop
        return None

    def _cropped(self, codes: Tensor) -> Tensor:
        if self._crop is None:
            return codes
        side = self._crop.side
        top, left = ((size - side) // 2 for size in codes.shape[-2:])
        return codes[..., top : top + side, left : left + side]

    def _inner(self, fields: Tensor) -> Tensor:
        """Return fields ``[..., H, W]`` without the margin of the crop, which is neither trained nor scored."""
        if self._crop is None or not self._crop.margin:
            return fields
        inner = slice(self._crop.margin, -self._crop.margin)
        return fields[..., inner, inner]

    def _check_score(self, score: str) -> None:
        """Reject a score that the protocol does not have, or of which neither higher nor lower values are better."""
        blank = torch.zeros(1, 1, *self.source.grid, dtype=torch.uint8)
        keys = scores(count(blank, blank.float(), protocol=self.protocol))
        valid = [LOSS, *(key for key in keys if is_higher_better(key) is not None)]
        if score not in valid:
            near = difflib.get_close_matches(score, valid, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"validation.score={score!r} is invalid; {hint}choose from {', '.join(valid)}")

    def _logged(self, by_key: Mapping[str, Any]) -> dict[str, float]:
        own = self.config.validation.score, *(_LOGGED_OF_ENSEMBLES if self.config.model.noise_channels else ())
        return defined(by_key, [key for key in by_key if key in (*_LOGGED, *own) or key.startswith(_LOGGED_FAMILIES)])


def _merge_windows(parts: list[tuple[Statistics, float]]) -> tuple[Statistics, list[float]]:
    statistics, losses = zip(*parts, strict=True)
    return merge(statistics), list(losses)


def higher_is_better(score: str) -> bool:
    """Return whether higher values of ``validation.score`` are better."""
    return score != LOSS and bool(is_higher_better(score))
