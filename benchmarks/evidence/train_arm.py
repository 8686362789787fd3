"""Training one arm in this process: the project's stages, loop, loss and learning rate, around plain fp32 Adam.

The engine is torch's own in place of DeepSpeed's, whose start would take as long as a short arm. The mathematics is
that of ``simcast train`` with ``engine.precision: fp32`` on one rank: ``tests/benchmarks/test_evidence_engine.py``
holds the two against each other.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.evidence.study_windows import Archive, EventWindows
from simcast_hpc.config import (
    BatchConfig,
    DataConfig,
    EngineConfig,
    LossConfig,
    SequenceConfig,
    SimVPConfig,
    StudentConfig,
    TrainConfig,
)
from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.data.loader import micro_batches, prefetch_to_device
from simcast_hpc.distill.cut_windows import Sample, to_frames, window_of_codes
from simcast_hpc.distributed.engine import set_learning_rate
from simcast_hpc.inference.trained_model import TrainedModel, forecast_device
from simcast_hpc.losses import WeightedMSE
from simcast_hpc.models import build_model
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from simcast_hpc.train.learning_rate import learning_rate
from simcast_hpc.train.loop import DeviceBatch, PeriodicHook, StepReport, train
from simcast_hpc.train.stages import STAGES, ForecastStage
from simcast_hpc.train.stages.forecast_stage import ForecastModule
from simcast_hpc.train.stages.student_stage import StudentStage, extend

from .arms import Arm
from .block_sums import Sums, score_forecast
from .study import Study

_VALIDATIONS = 5  # per run; the page reports the last fifth
_SELECTIONS = 24  # per run of an arm that selects its weights
DEVICE = forecast_device()


class PlainEngine:
    """Engine of the training loop without DeepSpeed: fp32, AdamW, gradient clipping, no accumulation."""

    def __init__(self, module: torch.nn.Module, config: TrainConfig):
        self.module, self.clip = module, config.optimizer.gradient_clip
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=0.0,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=True,  # saves a tenth of a step of a small network
        )

    def __call__(self, *sample: torch.Tensor) -> torch.Tensor:
        """Return the loss of a sample."""
        return self.module(*sample)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def step(self) -> None:
        """Update the weights."""
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient_accumulation_steps(self) -> int:
        """Return 1: there is no gradient accumulation."""
        return 1

    def gradients_are_finite(self) -> torch.Tensor:
        """Return True: only the loss is checked."""
        return torch.tensor(True)

    def skip_step(self) -> None:
        """Discard the gradients."""
        self.optimizer.zero_grad()


class PseudoFrames:
    """The teacher rolled out over every training sequence, stored in memory instead of a ``BlockStore``."""

    def __init__(self, frames: np.ndarray):
        self.frames = frames

    def read(self, index: int) -> np.ndarray:
        """Return the frames after sequence ``index``, fp16 ``[T_l, H, W]``."""
        return self.frames[index]


class Selection:
    """The weights with the highest CSI-M on the val split, over a grid of steps."""

    def __init__(self, study: Study, archive: Archive, model: TrainedModel):
        self.study, self.archive, self.model = study, archive, model
        self.curve: list[tuple[int, float]] = []
        self.weights: dict[str, torch.Tensor] = {}

    def update(self, step: int, _report: StepReport) -> None:
        """Score the current weights, rolled out to all lead times as in the test, and keep them if they are best."""
        frames = self.study.sequence.frames_out

        def forecast(codes: torch.Tensor) -> torch.Tensor:
            return self.model.forecast(codes, frames_out=frames)

        value = mean_csi(score_forecast(self.study, self.archive, forecast, split="val"))
        if not self.curve or value > max(best for _, best in self.curve):
            self.weights = {name: tensor.clone() for name, tensor in self.model.network.state_dict().items()}
        self.curve.append((step, value))

    def restore(self) -> dict[str, Any]:
        """Load the selected weights; return the curve and the step of the selection."""
        self.model.network.load_state_dict(self.weights)
        return {"val_csi": self.curve, "selected_step": max(self.curve, key=lambda point: point[1])[0]}


def mean_csi(sums: Sums) -> float:
    """Return CSI-M of sums pooled over blocks and lead times; thresholds without any event do not count."""
    hits, forecast, observed = (array.sum((0, 2)).astype(np.float64) for array in sums[:3])
    union = forecast + observed - hits
    return float((hits[union > 0] / union[union > 0]).mean())


def config_of(study: Study, arm: Arm, *, seed: int, folder: Path, archive: Path) -> TrainConfig:
    """Return the configuration with which ``simcast train`` trains an arm; teachers are siblings of ``folder``."""
    sequence = SequenceConfig(
        frames_in=study.sequence.frames_in,
        frames_out=study.sequence.frames_out,
        teacher_frames_out=arm.frames_out if arm.stage == "teacher" else study.half_horizon,
    )
    weights = LossConfig(thresholds=(), weights=(1.0,)) if arm.weight == 1 else LossConfig(weights=(1.0, arm.weight))
    student = StudentConfig()
    if arm.stage == "student":
        student = StudentConfig(
            teacher=None if arm.teacher is None else folder.with_name(unit_name(arm.teacher, seed)),
            extension=arm.extension,
            init="teacher" if arm.warm_start else "scratch",
        )
    return TrainConfig(
        name=arm.name,
        run_dir=folder,
        seed=seed,
        stage=arm.stage,
        max_steps=arm.steps,
        data=DataConfig(dataset="synthetic", root=archive, window_stride=study.window_stride, augment=arm.augment),
        sequence=sequence,
        model=_model(study, arm),
        loss=weights,
        batch=BatchConfig(global_size=study.batch_size, micro_size=study.batch_size),
        optimizer=study.optimizer,
        engine=EngineConfig(precision="fp32"),
        student=student,
    )


def _model(study: Study, arm: Arm) -> SimVPConfig:
    if arm.base == "none":
        return study.model
    return SimVPConfig.model_validate({**study.model.model_dump(), "base": arm.base})


def unit_name(arm: str, seed: int) -> str:
    """Return the name of a unit and of its folder."""
    return f"{arm}-seed{seed}"


def train_unit(study: Study, arm: Arm, *, seed: int, folder: Path, archive: Archive) -> dict[str, Any]:
    """Train an arm with a seed and write its weights to ``folder``, as ``simcast train`` does.

    Returns:
        ``train_loss`` and ``val_loss``, lists of (step, loss): the mean since the last entry, and the loss on real
        frames of the ``val`` split with the weights and horizon of the arm. With ``arm.select`` also ``val_csi``,
        CSI-M of the forecast of all lead times by step, and ``selected_step``.
    """
    config = config_of(study, arm, seed=seed, folder=folder, archive=archive.root)
    run = RunDirectory(folder)
    run.prepare(config)
    kind = STAGES[config.stage]
    source = _sequences(study, arm, kind.window_frames(config), archive)
    stage = kind(config, source)
    assert isinstance(stage, ForecastStage)
    torch.manual_seed(seed)
    network = build_model(config.model, frames_in=config.sequence.frames_in, frames_out=config.frames_out)
    stage.initialize(network)
    network.to(DEVICE)
    if isinstance(stage, StudentStage) and config.student.extension == "teacher":
        assert stage.teacher is not None
        stage.teacher.network.to(DEVICE)
        stage.extension = _pseudo_frames(stage, source, batch_size=study.scoring.batch_size)
    loss = WeightedMSE(config.loss, read_spec(config.data.dataset))
    validate = _validation(config, archive, network, loss)
    selection = Selection(study, archive, TrainedModel(network, config, weights_hash="")) if arm.select else None
    curves = _train(config, stage, source, network, loss, validate, selection)
    if selection is not None:
        curves |= selection.restore()
    run.weights.parent.mkdir(exist_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}, run.weights)
    run.finish({**config.science(), "study": study.model_dump(mode="json")}, steps=arm.steps, weights=weights_of(run))
    return curves


def weights_of(run: RunDirectory) -> str:
    """Return the hash of a run's weights."""
    return file_hash(run.weights)


def _sequences(study: Study, arm: Arm, frames: int, archive: Archive) -> EventWindows:
    beyond = study.sequence.frames_in + 2 * study.sequence.frames_out - frames
    return archive.windows("train", frames=frames, which=arm.windows, room=beyond, limit=arm.events)


def _pseudo_frames(stage: StudentStage, source: EventWindows, *, batch_size: int) -> PseudoFrames:
    assert stage.teacher is not None
    frames = []
    for first in range(0, len(source), batch_size):
        indices = range(first, min(first + batch_size, len(source)))
        codes = torch.from_numpy(np.stack([source.read(index) for index in indices]))
        frames.append(extend(stage.teacher, to_frames(codes.to(DEVICE)), stage.config).cpu().numpy())
    return PseudoFrames(np.concatenate(frames))


def _train(
    config: TrainConfig,
    stage: ForecastStage,
    source: EventWindows,
    network: torch.nn.Module,
    loss: WeightedMSE,
    validate: Callable[[], float],
    selection: "Selection | None",
) -> dict[str, Any]:
    engine = PlainEngine(ForecastModule(network, loss), config)
    recent: list[torch.Tensor] = []
    curves: dict[str, list[tuple[int, float]]] = {"train_loss": [], "val_loss": []}

    def record(step: int, _report: StepReport) -> None:
        curves["train_loss"].append((step, float(torch.stack(recent).mean())))
        recent.clear()
        curves["val_loss"].append((step, validate()))

    selections = [PeriodicHook(max(1, config.max_steps // _SELECTIONS), selection.update)] if selection else []
    train(
        engine,
        device_batches(config, stage, source),
        first_step=0,
        max_steps=config.max_steps,
        before_step=lambda step: set_learning_rate(
            engine, learning_rate(step, max_steps=config.max_steps, config=config.optimizer)
        ),
        hooks=[
            PeriodicHook(1, lambda _step, report: recent.append(report.loss)),
            PeriodicHook(max(1, config.max_steps // _VALIDATIONS), record),
            *selections,
        ],
    )
    return curves


def device_batches(config: TrainConfig, stage: ForecastStage, source: EventWindows) -> Iterator[DeviceBatch]:
    """Yield the micro-batches of a run on the device, endlessly."""
    size = config.batch.global_size
    batches = micro_batches(
        source,
        seed=config.seed,
        first_step=0,
        global_size=size,
        micro_size=size,
        rank=0,
        world_size=1,
        extension=stage.extension,
    )
    for batch in prefetch_to_device(batches, DEVICE):
        indices = batch.indices
        yield DeviceBatch(stage.sample(batch), lambda indices=indices: [str(source.key(i)) for i in indices])


def _validation(
    config: TrainConfig, archive: Archive, network: torch.nn.Module, loss: WeightedMSE
) -> Callable[[], float]:
    frames_in, frames_out = config.sequence.frames_in, config.frames_out
    source = archive.windows("val", frames=frames_in + config.sequence.frames_out)
    codes = torch.from_numpy(np.stack([source.read(index) for index in range(len(source))]))
    first = torch.zeros(len(codes), dtype=torch.int64, device=DEVICE)
    sample: Sample = window_of_codes(codes.to(DEVICE), first, frames_in=frames_in, frames_out=frames_out)

    @torch.no_grad()
    def validate() -> float:
        return float(loss(network(sample.inputs), sample.target, sample.valid))

    return validate
