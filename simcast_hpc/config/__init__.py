"""Configurations: frozen models, read from YAML and validated before a device is used.

A ``TrainConfig`` is one training run (``simcast train``). A ``PipelineConfig`` is several training runs that share
fields, and their verification (``simcast pipeline``). Each section declares the stages that read it, and each field
that does not affect results is marked as operational. This package imports no other package of the project.
"""

from .data_config import CropConfig, DataConfig, HoldOutConfig, ImportanceSamplingConfig, SequenceConfig
from .diffusion_config import (
    AutoencoderConfig,
    AutoencoderTrainingConfig,
    CasFormerConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    SamplingConfig,
)
from .errors import ConfigError, DataError, SimcastError
from .model_config import (
    ConvStem,
    EarthformerConfig,
    GlobalVectorConfig,
    ModelConfig,
    NoStem,
    SimVPConfig,
    StackConvStem,
)
from .optimization_config import (
    BatchConfig,
    BatchRuleConfig,
    EMAConfig,
    EngineConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
)
from .path_expansion import expand_path
from .pipeline_config import (
    POSTPROCESSING,
    EvaluationConfig,
    LaunchConfig,
    PipelineConfig,
    SynthesisConfig,
    TestSetConfig,
    read_run_config,
)
from .shipped_configs import copy_config, list_configs, resolve, summary
from .stage_sections import (
    FORECASTING,
    STAGES,
    Operational,
    Section,
    Stage,
    StrictModel,
    Unit,
    added_defaults,
    is_operational,
    unit_of,
)
from .train_config import CheckpointConfig, LogConfig, SharedConfig, StudentConfig, TrainConfig, WatchConfig
from .validation_config import ValidationConfig
from .yaml_files import from_mapping, read_config, to_yaml

__all__ = [
    "FORECASTING",
    "POSTPROCESSING",
    "STAGES",
    "AutoencoderConfig",
    "AutoencoderTrainingConfig",
    "BatchConfig",
    "BatchRuleConfig",
    "CasFormerConfig",
    "CheckpointConfig",
    "ConfigError",
    "ConvStem",
    "CropConfig",
    "DataConfig",
    "DataError",
    "DiffusionConfig",
    "DiscriminatorConfig",
    "EMAConfig",
    "EarthformerConfig",
    "EngineConfig",
    "EvaluationConfig",
    "GlobalVectorConfig",
    "HoldOutConfig",
    "ImportanceSamplingConfig",
    "LaunchConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "NoStem",
    "Operational",
    "OptimizerConfig",
    "ParallelConfig",
    "PipelineConfig",
    "SamplingConfig",
    "Section",
    "SequenceConfig",
    "SharedConfig",
    "SimVPConfig",
    "SimcastError",
    "StackConvStem",
    "Stage",
    "StrictModel",
    "StudentConfig",
    "SynthesisConfig",
    "TestSetConfig",
    "TrainConfig",
    "Unit",
    "ValidationConfig",
    "WatchConfig",
    "added_defaults",
    "copy_config",
    "expand_path",
    "from_mapping",
    "is_operational",
    "list_configs",
    "read_config",
    "read_run_config",
    "resolve",
    "summary",
    "to_yaml",
    "unit_of",
]
