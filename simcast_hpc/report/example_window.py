"""The example window beside a score file, read and checked before it is shown."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simcast_hpc.config import DataError

SUFFIX = ".example.npz"


class ResultsError(DataError):
    """A run folder whose results cannot be shown; the message names the file and what would be right."""


@dataclass(frozen=True)
class EnsembleFrames:
    """Products of an ensemble, floats in [0, 1].

    ``members`` ``[k, T', H, W]``, some of them; ``mean`` and ``matched_mean`` (probability-matched, Ebert 2001)
    ``[T', H, W]``; ``probability`` ``[thresholds, T', H, W]`` of reaching each threshold.
    """

    members: np.ndarray
    mean: np.ndarray
    matched_mean: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class ExampleFrames:
    """One window: ``inputs`` and ``observed`` uint8 ``[T, H, W]``, forecasts float32 ``[T', H, W]`` in [0, 1].

    Of an ensemble ``forecasts`` holds one member; ``ensembles`` has its products, where the file does.
    """

    event: str
    inputs: np.ndarray
    observed: np.ndarray
    forecasts: dict[str, np.ndarray]
    thresholds: tuple[float, ...]
    ensembles: dict[str, EnsembleFrames] = field(default_factory=dict)


def read_example(path: Path) -> ExampleFrames | None:
    """Return the example window in a file; None where there is no such file.

    Raises:
        ResultsError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            named = {key: key.partition("/")[2] for key in file.files}
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
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ResultsError(f"{path} holds no example frames: {error}") from error
    _check(example, path)
    return example


def _check(example: ExampleFrames, path: Path) -> None:
    for name, frames in (("inputs", example.inputs), ("observed", example.observed)):
        if frames.dtype != np.uint8 or frames.ndim != 3:
            raise ResultsError(f"{path}: {name} must be uint8 [T, H, W], got {frames.dtype} {frames.shape}")
    shape = example.observed.shape
    for name, frames in example.forecasts.items():
        if frames.shape != shape:
            raise ResultsError(f"{path}: forecast/{name} has shape {frames.shape}; observed has {shape}")
    for name, made in example.ensembles.items():
        wanted = {"mean": shape, "matched_mean": shape, "probability": (len(example.thresholds), *shape)}
        for kind, expected in {**wanted, "members": (len(made.members), *shape)}.items():
            found = getattr(made, kind).shape
            if found != expected:
                raise ResultsError(f"{path}: {kind}/{name} has shape {found}; it must be {expected}")
