"""The data type of the gradient reduction of a run that is resumed: the one that it was started with.

``engine.gradient_reduction`` is operational, like the number of ranks and the ZeRO stage: it decides the rounding of
sums over ranks, and one rank has no such sums. So a run that is resumed with another value remains the same run. Still
a resumed run keeps its value unless the configuration sets one, and runs of versions without the field used bf16.
"""

import logging
from typing import Literal

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.config.yaml_files import read_plain_mapping
from simcast_hpc.data.shared_reads import shared_read
from simcast_hpc.storage.run_directory import RunDirectory

from .checkpoint import visible

logger = logging.getLogger(__name__)
_FIELD = "gradient_reduction"


def with_stored_reduction(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the data type in which the run that it resumes reduced gradients.

    The configuration is returned unchanged if it sets ``engine.gradient_reduction``, trains in fp32 or resumes no
    checkpoint. All ranks read the same file of the run directory.
    """
    engine = config.engine
    if engine.precision != "bf16" or _FIELD in engine.model_fields_set:
        return config
    stored = shared_read(("gradient reduction",), lambda: _stored_reduction(RunDirectory(config.run_dir)))
    if stored is None or stored == engine.gradient_reduction:
        return config
    logger.warning(
        "%s was started with engine.gradient_reduction=%s and keeps it; set engine.gradient_reduction=%s to change it",
        config.run_dir, stored, engine.gradient_reduction,
    )  # fmt: skip
    return config.model_copy(update={"engine": engine.model_copy(update={_FIELD: stored})})


def _stored_reduction(directory: RunDirectory) -> Literal["fp32", "bf16"] | None:
    """Return the data type in the configuration of a run with checkpoints, or None without one."""
    if not directory.config.is_file() or not visible(directory.checkpoints):
        return None
    try:
        engine = read_plain_mapping(directory.config).get("engine")
    except ConfigError:  # damaged; it is only a copy and is written again
        return None
    if not isinstance(engine, dict):
        return None
    return "fp32" if engine.get(_FIELD, "bf16") == "fp32" else "bf16"
