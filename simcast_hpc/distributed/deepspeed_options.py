"""Add the options of ``engine.deepspeed`` to the derived configuration of DeepSpeed, and check them by its models."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from simcast_hpc.config import ConfigError
from simcast_hpc.config.yaml_files import merge

from .process_group import import_deepspeed

_ZERO = "zero_optimization"
# Sections and flags of DeepSpeed 0.19.8 that have an effect in a training run here; it ignores unknown ones silently.
_TOP_LEVEL = (
    "aio", "comms_logger", "csv_monitor", "comet", "disable_python_gc", "dump_state", "flops_profiler",
    "gradient_predivide_factor", "log_level", "memory_breakdown", "prescale_gradients", "steps_per_print",
    "tensorboard", "timers", "wall_clock_breakdown", "wandb", _ZERO,
)  # fmt: skip


def with_options(derived: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the derived configuration of DeepSpeed with the options of ``engine.deepspeed``, mapping by mapping.

    Raises:
        ConfigError: DeepSpeed has no such option, or it has another type; names the option and the nearest valid one.
    """
    for key in options:
        if key not in _TOP_LEVEL:
            raise ConfigError(f"engine.deepspeed.{key}: unknown or without effect{_nearest(key, _TOP_LEVEL)}")
    merged = merge(derived, options)
    if _ZERO in options:
        _check_zero(merged[_ZERO])
    return merged


def _check_zero(section: Any) -> None:
    """Validate the merged section ``zero_optimization`` by DeepSpeed's own model."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"engine.deepspeed.{_ZERO}={section!r} is not a mapping")
    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join([f"engine.deepspeed.{_ZERO}", *map(str, item["loc"])])
        if item["type"] == "extra_forbidden":
            valid = _names(DeepSpeedZeroConfig, item["loc"][:-1])
            raise ConfigError(f"{where}: unknown option of DeepSpeed{_nearest(str(item['loc'][-1]), valid)}") from None
        raise ConfigError(f"{where}: {item['msg']}, got {item['input']!r}") from None
    except (AssertionError, TypeError) as error:  # DeepSpeed's own checks of combinations; keys that are not names
        raise ConfigError(f"engine.deepspeed.{_ZERO}: {error}") from None


def _names(model: Any, path: tuple[Any, ...]) -> list[str]:
    """Return the keys that the model at ``path`` accepts: aliases, and names where there is none."""
    for part in path:
        annotations = [field.annotation for name, field in model.model_fields.items() if part in (name, field.alias)]
        found = [one for kind in annotations for one in (kind, *getattr(kind, "__args__", ()))]
        model = next((one for one in found if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(name: str, valid: Any) -> str:
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
