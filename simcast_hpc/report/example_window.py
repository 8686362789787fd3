"""Read and check the example window of a score file."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError
from simcast_hpc.storage.npz_files import load_npz

SUFFIX = ".example.npz"


class ResultsError(DataError):
    """Results that cannot be read; the message has the file and the reason."""


@dataclass(frozen=True)
class EnsembleFrames:
    """Products of an ensemble, floats in [0, 1].

    Attributes:
        members: ``[k, T', H, W]``, a subset.
        mean: ``[T', H, W]``.
        matched_mean: ``[T', H, W]``, probability-matched mean (Ebert 2001).
        probability: ``[thresholds, T', H, W]`` of exceeding each threshold.
    """

    members: np.ndarray
    mean: np.ndarray
    matched_mean: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class ExampleFrames:
    """One window: ``inputs`` and ``observed`` uint8 ``[T, H, W]``, forecasts float32 ``[T', H, W]`` in [0, 1].

    For an ensemble ``forecasts`` has one member, and ``ensembles`` its products if the file has them.
    """

    event: str
    inputs: np.ndarray
    observed: np.ndarray
    forecasts: dict[str, np.ndarray]
    thresholds: tuple[float, ...]
    ensembles: dict[str, EnsembleFrames] = field(default_factory=dict)


def read_example(path: Path) -> ExampleFrames | None:
    """Return the example window in a file; None if the file does not exist.

    Raises:
        ResultsError: the file does not contain a valid example window.
    """
    if not path.is_file():
        return None
    try:
        file = load_npz(path, error=ResultsError, what="the file")
        named = {key: key.partition("/")[2] for key in file}
        example = ExampleFrames(
            event=str(file["event"]),
            inputs=file["inputs"],
            observed=file["observed"],
            forecasts={name: file[key] for key, name in named.items() if key.startswith("forecast/")},
            thresholds=tuple(float(code) for code in file["thresholds"]),
            ensembles={
                name: EnsembleFrames(
                    *(file[f"{kind}/{name}"] for kind in ("members", "mean", "matched_mean", "probability"))
                )
                for key, name in named.items()
                if key.startswith("members/")
            },
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ResultsError(f"{path} does not contain an example window: {error}") from error
    _check(example, path)
    return example


def _check(example: ExampleFrames, path: Path) -> None:
    for name, frames in (("inputs", example.inputs), ("observed", example.observed)):
        if frames.dtype != np.uint8 or frames.ndim != 3:
            raise ResultsError(f"{path}: {name} must be uint8 [T, H, W], got {frames.dtype} {frames.shape}")
    shape = example.observed.shape
    for name, frames in example.forecasts.items():
        if frames.shape != shape:
            raise ResultsError(f"{path}: forecast/{name} must have the shape of observed, {shape}, got {frames.shape}")
    for name, products in example.ensembles.items():
        shapes = {"mean": shape, "matched_mean": shape, "probability": (len(example.thresholds), *shape)}
        for kind, expected in {**shapes, "members": (len(products.members), *shape)}.items():
            actual = getattr(products, kind).shape
            if actual != expected:
                raise ResultsError(f"{path}: {kind}/{name} must have shape {expected}, got {actual}")
