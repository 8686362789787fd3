"""The configuration of a run: frozen, strict, read once from YAML and checked before any device is touched.

A ``TrainConfig`` is one training run (``simcast train``). A ``PipelineConfig`` is several of them that share
their fields, in order, with verification after (``simcast pipeline``). Global batch size is science, micro
batch size is memory, accumulation follows from both and the number of ranks. Imports nothing of ours.
"""

from .pipeline import EvaluationConfig, LaunchConfig, PipelineConfig, SynthesisConfig, TestSetConfig
from .reading import ConfigError, SimcastError, StrictModel, from_mapping, read_config, to_yaml
from .run import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EMAConfig,
    EngineConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SequenceConfig,
    SharedConfig,
    SimVPConfig,
    Stage,
    StudentConfig,
    TrainConfig,
)

__all__ = [
    "BatchConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EMAConfig",
    "EngineConfig",
    "EvaluationConfig",
    "LaunchConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "SequenceConfig",
    "SharedConfig",
    "SimVPConfig",
    "SimcastError",
    "Stage",
    "StrictModel",
    "StudentConfig",
    "SynthesisConfig",
    "TestSetConfig",
    "TrainConfig",
    "from_mapping",
    "read_config",
    "to_yaml",
]
