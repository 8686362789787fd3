"""Forecast from encoded radar frames on their map; a domain larger than the training grid is divided into tiles."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import torch

from simcast_hpc import __version__
from simcast_hpc.config import ConfigError, DataError, TrainConfig
from simcast_hpc.data.dataset_spec import warn_about_name
from simcast_hpc.data.encoding import MISSING_CODE
from simcast_hpc.data.open_windows import sample_grid
from simcast_hpc.inference.ensemble import Ensemble
from simcast_hpc.inference.input_arrays import missing_summary
from simcast_hpc.inference.postprocessing import Postprocessing
from simcast_hpc.inference.tiles import Shape, Tiling, forecast_in_tiles
from simcast_hpc.inference.trained_model import TrainedModel
from simcast_hpc.models import grid_of
from simcast_hpc.radar.frame_encoding import EncodedFrame, ModelEncoding
from simcast_hpc.storage.run_directory import versions

from .border_blending import blend, extrapolate_linear, weight_of_model
from .choose_frames import FrameRequest, FrameSet, choose_frames
from .forecast_fields import FALLBACK, MODEL, Forecast
from .inflow import InflowMode, mark_inflow
from .input_frames import stack_frames

# Members are sampled in groups whose fields and noise take at most this many bytes, in addition to the kept members.
_GROUP_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model with the settings of its forecasts.

    Attributes:
        model: of a finished run.
        code: encoding, pixel spacing and cadence of the model.
        wanted: input frames of a forecast.
        tile: height and width of tiles, by default the training grid.
        overlap: minimum overlap of neighboring tiles in pixels.
        margin: pixels along the border between tiles that are discarded.
        batch: tiles per batch.
        keep_members: whether an ensemble's members are kept; without, memory does not grow with their number.
        postprocessing: changes the values of each member on the whole domain; None for none.
        inflow: how pixels are treated that are not determined by observations.
        blend_km: width of the border in km in which the forecast is blended with extrapolation; 0 for none.
    """

    model: TrainedModel | Ensemble
    code: ModelEncoding
    wanted: FrameRequest
    tile: Shape
    overlap: int
    batch: int = 4
    keep_members: bool = True
    margin: int = 0
    postprocessing: Postprocessing | None = None
    inflow: InflowMode = "mark"
    blend_km: float = 0.0

    def __post_init__(self) -> None:
        """Warn if the name of the run, which forecasts show, is that of another data set."""
        warn_about_name(self.model.config.name, self.code.spec)

    def inputs(self, available: Sequence[datetime], issue: datetime) -> FrameSet:
        """Choose the input frames of a forecast issued at ``issue``.

        Raises:
            DataError: frames are missing.
        """
        return choose_frames(available, issue, self.wanted)

    def predict(self, frames: Mapping[datetime, EncodedFrame], issue: datetime) -> Forecast:
        """Return the forecast issued at ``issue`` from the frames by time.

        Raises:
            DataError: frames are missing, they do not belong together, or no pixel is valid in all of them.
            RuntimeError: the network failed, or returned non-finite values.
        """
        inputs = stack_frames(frames, self.inputs(list(frames), issue), self.code, bridge=self.wanted.bridge)
        codes, missing = inputs.codes, np.logical_or.reduce(inputs.missing)
        domain = Tiling((codes.shape[1], codes.shape[2]), self.tile, self.overlap, self.margin)
        if missing.all():
            raise DataError(
                f"no forecast for {issue:%Y-%m-%d %H:%M} UTC: {missing_summary(torch.from_numpy(codes)[None])}"
            )
        values, mean, probability = self._forecast(codes, domain, missing)
        forecast = inputs.forecast(self.wanted.step_minutes, values, mean, probability, self._fixed)
        return mark_inflow(forecast, inputs, self.inflow)

    def _forecast(self, codes: np.ndarray, domain: Tiling, missing: np.ndarray):
        """Return values ``[M, T', H, W]``, mean and probability in physical units, NaN where ``missing``."""
        frames_out, is_ensemble = self.model.config.sequence.frames_out, isinstance(self.model, Ensemble)
        count = self.model.sampling.members if isinstance(self.model, Ensemble) else 1
        frame = (frames_out, *domain.domain)
        levels = self.code.to_linear(np.array(self.code.thresholds()))
        kept = np.zeros((count, *frame), np.float32) if self.keep_members or not is_ensemble else None
        total = np.zeros(frame, np.float32) if is_ensemble else None
        reached = np.zeros((len(levels), *frame), np.uint16) if is_ensemble else None
        base = self._base_of_domain(codes, domain)
        blending = self._blending(codes, missing)
        for numbers in self._groups(count, frame, domain):
            linear = (
                np.zeros((len(numbers), *frame), np.float32) if kept is None else kept[numbers[0] : numbers[-1] + 1]
            )
            forecast_in_tiles(self._of_tiles(codes, numbers, base), codes, domain, out=linear, batch=self.batch)
            for member in linear:
                if not np.isfinite(member).all():
                    raise RuntimeError(f"the network of {self.model.config.run_dir} returned non-finite values")
                if blending is not None:
                    blend(member, *blending)
                self._postprocess(member, codes)
                if total is not None and reached is not None:
                    total += member
                    for level, count_above in zip(levels, reached, strict=True):
                        count_above += member >= level
                if kept is not None:
                    self.code.make_physical(member, missing)
        if total is None or reached is None:
            return kept, None, None
        probability = (reached / np.float32(count)).astype(np.float32)
        probability[..., missing] = np.nan
        total /= np.float32(count)
        self.code.make_physical(total, missing)
        return kept, total, probability

    def _blending(self, codes: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the weight of the network ``[H, W]`` and the extrapolation ``[T', H, W]``; None without blending."""
        pixels = round(self.blend_km / self.code.spacing_km)
        if not pixels:
            return None
        frames_out = self.model.config.sequence.frames_out
        return weight_of_model(missing, pixels), extrapolate_linear(codes, frames_out, self.code)

    def _postprocess(self, linear: np.ndarray, codes: np.ndarray) -> None:
        """Change the values of a member ``[T', H, W]`` in linear units in place, from its inputs ``[T, H, W]``."""
        if self.postprocessing is None:
            return
        values = torch.from_numpy(self.code.forecast_of_linear(linear))
        changed = self.postprocessing.apply(values[None], torch.from_numpy(codes[-1:])[None])
        linear[...] = self.code.linear_of_forecast(changed[0].numpy())

    def _groups(self, count: int, frame: tuple[int, ...], domain: Tiling) -> list[range]:
        noise = self.model.noise_shape(domain.padded) if isinstance(self.model, Ensemble) else (0,)
        size = max(1, _GROUP_BYTES // (4 * int(np.prod(frame) + np.prod(noise))))
        return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def _of_tiles(self, codes: np.ndarray, numbers: Sequence[int], base: torch.Tensor | None):
        """Return the function from encoded tiles ``[B, T, h, w]`` to linear forecasts ``[B, M, T', h, w]``."""
        model, frames_out = self.model, self.model.config.sequence.frames_out
        if isinstance(model, TrainedModel):

            def forecast(cut: np.ndarray, corners: Sequence[Shape]) -> np.ndarray:
                own_base = self._of_corners(base, corners)
                values = model.forecast(torch.from_numpy(cut), frames_out=frames_out, base=own_base)
                return self.code.linear_of_forecast(values[:, None].cpu().numpy())

            return forecast
        padded = Tiling((codes.shape[1], codes.shape[2]), self.tile, self.overlap, self.margin).padded
        noise = model.noise_of_domain(torch.from_numpy(codes), numbers, grid=padded)

        def sample(cut: np.ndarray, corners: Sequence[Shape]) -> np.ndarray:
            start = torch.stack([noise_of_tile(noise, corner, self.tile, model.noise_spacing) for corner in corners])
            own_base = self._of_corners(base, corners)
            members = model.sample_members(torch.from_numpy(cut), numbers, start=start, base=own_base)
            return self.code.linear_of_forecast(members.frames.cpu().numpy())

        return sample

    def _base_of_domain(self, codes: np.ndarray, tiling: Tiling) -> torch.Tensor | None:
        """Return the base forecast of codes ``[T, H, W]``, fp32 ``[1, slots, 1, H, W]``; None if each tile has its own.

        Those are models without ``model.base``, and a domain of one tile.
        """
        if len(tiling) == 1:
            return None
        below, right = (size - own for size, own in zip(tiling.padded, tiling.domain, strict=True))
        padded = np.pad(codes, ((0, 0), (0, below), (0, right)), constant_values=MISSING_CODE)
        return self.model.base_forecast(torch.from_numpy(padded)[None], side=min(self.tile))

    def _of_corners(self, base: torch.Tensor | None, corners: Sequence[Shape]) -> torch.Tensor | None:
        """Return the parts ``[B, slots, 1, h, w]`` of a base forecast for the tiles with these upper left pixels."""
        if base is None:
            return None
        height, width = self.tile
        return torch.cat([base[..., row : row + height, column : column + width] for row, column in corners])

    @cached_property
    def _fixed(self) -> dict[str, str]:
        """Provenance that all forecasts of this predictor share."""
        model, version = self.model, versions()
        config: TrainConfig = model.config
        provenance = {
            "simcast_version": __version__,
            "simcast_commit": version["commit"],
            "torch_version": version["torch"],
            MODEL: f"{config.stage} {config.name}",
            FALLBACK: "none",
            "simcast_run": config.name,
            "simcast_stage": config.stage,
            "simcast_weights_sha256": model.weights_hash,
            "simcast_data_description": self.code.spec.name,
            "license": self.code.spec.license,
            "attribution": self.code.spec.credit,
            "simcast_postprocessing": self.postprocessing.name if self.postprocessing else "none",
            "simcast_tile": f"{self.tile[0]} x {self.tile[1]} pixels, overlap {self.overlap}"
            + (f", margin {self.margin}" if self.margin else ""),
        }
        if self.blend_km:
            provenance["simcast_blend_border"] = f"{self.blend_km:g} km"
        if self.postprocessing is not None:
            provenance["simcast_postprocessing_reference"] = self.postprocessing.reference
        if isinstance(model, Ensemble):
            provenance["simcast_sampling"] = model.sampling.model_dump_json()
            provenance |= {f"simcast_{role}_weights_sha256": weights for role, weights in model.inputs.items()}
        return provenance

    @property
    def about(self) -> dict[str, str]:
        """Run directory and hash of the weights, for status files."""
        return {"run": str(self.model.config.run_dir), "weights": self.model.weights_hash}

    @property
    def identity(self) -> str:
        """Everything that determines this predictor's forecasts except their inputs and the program's version."""
        excluded = ("simcast_version", "simcast_commit", "torch_version", "license", "attribution")
        provenance = {key: value for key, value in self._fixed.items() if key not in excluded}
        relation = self.code.z_r.model_dump_json() if self.code.z_r else ""
        code = [relation, self.code.any_spacing, self.code.any_interval, self.code.dataset, str(self.code.importer)]
        return json.dumps([provenance, code, self.wanted.bridge, self.keep_members, self.inflow])


def noise_of_tile(noise: torch.Tensor, corner: Shape, tile: Shape, spacing: int) -> torch.Tensor:
    """Return the part of a domain's noise ``[..., h, w]`` that belongs to a tile.

    ``corner`` is the tile's upper left pixel, ``spacing`` the pixels per element of the noise; between two elements the
    nearer is taken.
    """
    part = tuple(-(-size // spacing) for size in tile)
    domain = (noise.shape[-2], noise.shape[-1])
    row, column = (min(round(at / spacing), size - p) for at, size, p in zip(corner, domain, part, strict=True))
    return noise[..., row : row + part[0], column : column + part[1]]


def reject_unfit_tile(model: TrainedModel | Ensemble, tile: Shape) -> None:
    """Check that a model can take tiles of this size.

    Raises:
        ConfigError: it cannot; names the size and the training grid.
    """
    own = training_grid(model)
    try:
        if min(tile) < 1:
            raise ValueError("a tile has at least one pixel")
        empty = torch.zeros(1, model.config.sequence.frames_in, *tile, dtype=torch.uint8)
        if isinstance(model, Ensemble):
            model.members(empty, [0])
        else:
            model.forecast(empty, frames_out=1)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--tile {tile[0]} {tile[1]} does not suit the model: {error}; it was trained on {own[0]} x {own[1]}"
        ) from error


def training_grid(model: TrainedModel | Ensemble) -> Shape:
    """Return the grid (h, w) that a model was trained on: its own grid, the crop, or that of the data set."""
    config = model.frames_config if isinstance(model, Ensemble) else model.config
    if own := grid_of(config.model):
        return own
    return sample_grid(config.data)


def tile_margin(model: TrainedModel | Ensemble) -> int:
    """Return the margin of the crops that a model was trained on: its forecast is untrained near a tile's border."""
    config = model.frames_config if isinstance(model, Ensemble) else model.config
    crop = config.data.cropping
    return 0 if crop is None else crop.margin
