"""Earthformer's ``SEVIRDataLoader``, imported unchanged from a checkout; requires pandas (``pip install pandas``)."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stub_imports import import_earthformer

FRAMES, STRIDE = 25, 12


def import_loader(checkout: Path) -> Any:
    """Return the class ``SEVIRDataLoader`` of a checkout of amazon-science/earth-forecasting-transformer.

    Raises:
        ImportError: the checkout does not contain it, or pandas is not installed.
    """
    return import_earthformer(checkout, "datasets.sevir.sevir_dataloader").SEVIRDataLoader


def open_loader(loader: Any, root: Path, *, batch: int) -> Any:
    """Return a loader over an archive with the options of Earthformer's SEVIR configuration, in sequential order."""
    return loader(
        data_types=["vil"],
        seq_len=FRAMES,
        raw_seq_len=49,
        sample_mode="sequent",
        stride=STRIDE,
        batch_size=batch,
        layout="NTHW",
        sevir_catalog=str(root / "CATALOG.csv"),
        sevir_data_dir=str(root / "data"),
        start_date=None,
        end_date=datetime(2019, 1, 1),
        rescale_method="01",
        verbose=False,
    )


def sequential_batches(loader: Any, batches: int) -> Iterator[Any]:
    """Yield the first batches, float32 ``[N, T, H, W]`` in [0, 1]."""
    loader.reset()
    for _ in range(batches):
        yield next(loader)["vil"]


def batches_at(loader: Any, indices: Iterator[int]) -> Iterator[Any]:
    """Yield the batches at these indices."""
    for index in indices:
        yield loader[index]["vil"]


def to_codes(batch: Any) -> np.ndarray:
    """Return a batch in [0, 1] as encoded values, uint8."""
    return np.rint(batch.numpy() * 255).astype(np.uint8)
