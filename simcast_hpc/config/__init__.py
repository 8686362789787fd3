"""The configuration of a run: frozen, strict, read once from YAML and checked before any device is touched.

A ``TrainConfig`` is one training run (``simcast train``). A ``PipelineConfig`` is several of them that share
their fields, in order, with verification after (``simcast pipeline``). Global batch size is science, micro
batch size is memory, accumulation follows from both and the number of ranks. Imports nothing of ours.
"""

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
from .pipeline_config import (
    EvaluationConfig,
    LaunchConfig,
    PipelineConfig,
    SynthesisConfig,
    TestSetConfig,
    read_run_config,
)
from .shipped_configs import copy_config, list_configs, resolve, summary
from .train_config import (
    FORECASTING,
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EMAConfig,
    EngineConfig,
    HoldOutConfig,
    LogConfig,
    LossConfig,
    OptimizerConfig,
    SequenceConfig,
    SharedConfig,
    Stage,
    StudentConfig,
    TrainConfig,
    WatchConfig,
)
from .yaml_files import StrictModel, from_mapping, read_config, to_yaml

__all__ = [
    "FORECASTING",
    "AutoencoderConfig",
    "AutoencoderTrainingConfig",
    "BatchConfig",
    "CasFormerConfig",
    "CheckpointConfig",
    "ConfigError",
    "ConvStem",
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
    "LaunchConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "NoStem",
    "OptimizerConfig",
    "PipelineConfig",
    "SamplingConfig",
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
    "WatchConfig",
    "copy_config",
    "from_mapping",
    "list_configs",
    "read_config",
    "read_run_config",
    "resolve",
    "summary",
    "to_yaml",
]
