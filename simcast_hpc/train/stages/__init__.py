"""One file a stage: which frames it trains on, and what else it needs. ``run.py`` puts a run together."""

from simcast_hpc.config import TrainConfig
from simcast_hpc.data.window_source import WindowSource

from .autoencoder_stage import AutoencoderStage, AutoencoderTask
from .base import ForecastTask, Task
from .diffusion_stage import DiffusionStage, DiffusionTask
from .direct_stage import DirectStage
from .student_stage import StudentStage
from .teacher_stage import TeacherStage

AnyStage = TeacherStage | DirectStage | StudentStage | AutoencoderStage | DiffusionStage
STAGES = {
    "teacher": TeacherStage,
    "direct": DirectStage,
    "student": StudentStage,
    "autoencoder": AutoencoderStage,
    "diffusion": DiffusionStage,
}


def make_stage(config: TrainConfig) -> AnyStage:
    """Return the stage that ``config`` names.

    Raises:
        ConfigError: it needs something that is not there.
    """
    return STAGES[config.stage](config)


def make_task(config: TrainConfig, stage: AnyStage, source: WindowSource) -> Task:
    """Return what a stage trains on ``source``, tried on shapes alone.

    Raises:
        ConfigError: the network does not fit the data.
    """
    if isinstance(stage, AutoencoderStage):
        return AutoencoderTask(config, source)
    if isinstance(stage, DiffusionStage):
        return DiffusionTask(config, stage, source)
    return ForecastTask(config, source)
