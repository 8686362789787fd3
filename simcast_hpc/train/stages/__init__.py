"""One file a stage: which frames it trains on, and what else it needs. ``run.py`` puts a run together."""

from simcast_hpc.config import TrainConfig

from .direct import DirectStage
from .student import StudentStage
from .teacher import TeacherStage

AnyStage = TeacherStage | DirectStage | StudentStage
STAGES = {"teacher": TeacherStage, "direct": DirectStage, "student": StudentStage}


def make_stage(config: TrainConfig) -> AnyStage:
    """Return the stage that ``config`` names.

    Raises:
        ConfigError: it needs something that is not there.
    """
    return STAGES[config.stage](config)
