"""The stages of training, one per file. A new stage needs a class here and in no other module of ``train``."""

from .autoencoder_stage import AutoencoderStage
from .diffusion_stage import DiffusionStage
from .forecast_stage import DirectStage, ForecastStage, TeacherStage
from .stage import Stage
from .student_stage import StudentStage

__all__ = ["STAGES", "ForecastStage", "Stage"]

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (TeacherStage, DirectStage, StudentStage, AutoencoderStage, DiffusionStage)
}
