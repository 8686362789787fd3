"""Fields for comparisons with other libraries, and the table of their largest differences."""

import contextlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.shared_data import shared

EXACT = 1e-9
_PAGE = Path(__file__).parents[2] / "docs" / "results" / "compatibility.md"


def library(name: str) -> Any:
    """Return a module of an optional library; the test is skipped without it."""
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration file
        return pytest.importorskip(
            name, reason=f"{name} is not installed: pip install -c constraints.txt -e '.[verify]'"
        )


def synthetic(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return smooth uint8 fields with structure at several scales."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((*shape[:-2], 8, 8))
    field = np.kron(coarse, np.ones((shape[-2] // 8, shape[-1] // 8))) * 0.7 + generator.random(shape) * 0.3
    return (field * 254).astype(np.uint8)


def radar() -> tuple[np.ndarray, np.ndarray]:
    """Return three radar tiles: observation and the forecast of persistence after 20 minutes, ``[N, T, H, W]``."""
    with h5py.File(shared("data/radar/rr/2019/RR_MRMS4KM_20190610.h5")) as file:
        frames = np.asarray(file["rr"])[:3].transpose(0, 3, 1, 2)
    frames = np.where(frames == 255, 0, frames).astype(np.uint8)
    return frames[:, 12:15], frames[:, 2:5]


class Comparison:
    """Largest differences by score and reference, printed as a Markdown table."""

    def __init__(self, title: str):
        self.title = title
        self.rows: dict[tuple[str, str], float | str] = {}

    def check(
        self, name: str, reference: str, ours: Mapping[str, float], key: str, expected: Sequence[float] | np.ndarray
    ) -> None:
        """Compare ``key``, or its lead times if ``expected`` has several values, to 1e-9."""
        found = [ours[key]] if len(expected) == 1 else [ours[f"{key}/lead/{k}"] for k in range(1, len(expected) + 1)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT, equal_nan=True, err_msg=f"{key}, {reference}")
        difference = float(np.nanmax(np.abs(np.subtract(found, expected)), initial=0.0))
        self.rows[name, reference] = max(difference, float(self.rows.get((name, reference), 0.0)))

    def note(self, name: str, reference: str, text: str) -> None:
        """Add a row with a measured deviation of the reference."""
        self.rows[name, reference] = text

    def check_page(self) -> None:
        """Check that docs/results/compatibility.md names every score next to what it was compared with."""
        lines = _PAGE.read_text(encoding="utf-8").splitlines()
        for name, reference in self.rows:
            score, library_name = name.partition(",")[0], reference.split(",")[0].split(" ")[0]
            stem = score.removesuffix("_median").removesuffix("_signed")
            assert any(f"`{stem}`" in line and library_name in line for line in lines), (name, reference)

    def __str__(self) -> str:
        lines = [f"\n{self.title}", "| score | oracle | largest difference |", "|---|---|---|"]
        for (name, reference), value in self.rows.items():
            shown = value if isinstance(value, str) else f"{value:.1e}"
            lines.append(f"| `{name}` | {_with_version(reference)} | {shown} |")
        return "\n".join(lines)


def _with_version(reference: str) -> str:
    name = reference.split(",")[0].split(" ")[0]
    if name not in ("pysteps", "scores"):
        return reference
    return reference.replace(name, f"{name} {importlib.metadata.version(name)}", 1)
