"""Post-processing of forecasts by name: quantile mapping and probability matching, and their common interface."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from simcast_hpc.config import POSTPROCESSING, ConfigError, added_defaults
from simcast_hpc.data.encoding import MISSING_CODE, Encoding
from simcast_hpc.data.open_windows import target_spec

from .ensemble import Ensemble
from .probability_matching import ProbabilityMatching
from .quantile_mapping import FILE_NAME, QuantileMapping
from .trained_model import TrainedModel

# Settings of the sampling that do not change the distribution of a member.
_WITHOUT_EFFECT = {"members", "chunk", "seed", "cuda_graph"}


class Postprocessing(Protocol):
    """A change of a forecast's values after the forecast, from its input frames and what was fitted before."""

    @property
    def name(self) -> str:
        """The name in options and in rows of tables."""
        ...

    @property
    def note(self) -> str:
        """The description in tables and files."""
        ...

    @property
    def reference(self) -> str:
        """The observations whose distribution a forecast gets, for the attributes of files."""
        ...

    def check_leads(self, leads: int) -> None:
        """Raise a ConfigError if a forecast has too many lead times."""
        ...

    def apply(self, forecast: Tensor, frames: Tensor) -> Tensor:
        """Return the changed forecast, float32 ``[B, T', H, W]`` or ``[B, M, T', H, W]`` in [0, 1].

        Args:
            forecast: the forecast from lead time 1, in the shape of the result.
            frames: its input frames ``[B, T, H, W]``, uint8 encoded values or floats in [0, 1].
        """
        ...


def no_echo_limit(encoding: Encoding) -> float:
    """Return the value in [0, 1] below which a forecast means no echo: half an encoded value below the lowest echo.

    Encoded values with the physical value of 0 are no echo, such as 0 to 5 of SEVIR's VIL.
    """
    return (encoding.first_echo - 0.5) / MISSING_CODE


def model_identity(model: TrainedModel | Ensemble) -> dict[str, Any]:
    """Return what determines the distribution of a model's forecasts: hashes of weights, and an ensemble's sampling."""
    identity: dict[str, Any] = {"weights": model.weights_hash}
    if isinstance(model, Ensemble):
        identity |= model.inputs
        exclude = _WITHOUT_EFFECT | added_defaults(model.sampling)  # mappings of older versions lack added fields
        sampling = model.sampling.model_dump(mode="json", exclude=exclude)
        identity |= {f"sampling.{key}": value for key, value in sampling.items()}
    return identity


def load_quantile_mapping(run_dir: Path, model: TrainedModel | Ensemble) -> QuantileMapping:
    """Return the quantile mapping of a run.

    Raises:
        ConfigError: it was not fitted, is damaged, or was fitted with other weights or sampling settings.
    """
    path = run_dir / FILE_NAME
    again = f"run `simcast calibrate {run_dir}`"
    if not path.is_file():
        raise ConfigError(f"postprocess quantile-mapping: {path} does not exist; {again}")
    mapping = QuantileMapping.load(path)
    expected = model_identity(model)
    for key in (*expected, *(key for key in mapping.identity if key.startswith("sampling.") and key not in expected)):
        absent = "default" if key.startswith("sampling.") else None
        fitted, value = mapping.identity.get(key, absent), expected.get(key, absent)
        if fitted != value:
            raise ConfigError(
                f"{path} was fitted with {key}={str(fitted)[:12]}, but the model has {str(value)[:12]}; {again}"
            )
    return mapping


def load_postprocessing(name: str, run_dir: Path, model: TrainedModel | Ensemble) -> Postprocessing | None:
    """Return the post-processing ``name`` for the model of a run; None for ``none``.

    Raises:
        ConfigError: unknown name, or there is no quantile mapping of this model in the run directory.
    """
    check_postprocessing(name)
    if name == "quantile-mapping":
        return load_quantile_mapping(run_dir, model)
    if name == "probability-matching":
        return ProbabilityMatching(no_echo_limit(target_spec(model.config.data).encoding))
    return None


def check_postprocessing(name: str) -> None:
    """Check the name of a post-processing.

    Raises:
        ConfigError: it is unknown.
    """
    if name not in ("none", *POSTPROCESSING):
        raise ConfigError(f"postprocess {name!r} is unknown; choose none, {' or '.join(POSTPROCESSING)}")
