"""Micro-batches of one rank in the order of ``sample_order.py``, prefetched by worker processes and to the device."""

import atexit
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .crop_positions import CropPositions
from .sample_order import SampleOrder, rank_positions
from .window_source import ArraySource

logger = logging.getLogger(__name__)

_PREFETCH_FACTOR = 4  # micro-batches that each worker reads ahead


class Extension(Protocol):
    """Stored pseudo-frames that extend each window of a source."""

    def read(self, index: int) -> np.ndarray:
        """Return the frames after window ``index``: fp16 in [0, 1] with NaN, or uint8 with 255, ``[T', H, W]``."""
        ...


class MicroBatch(NamedTuple):
    """The samples of one forward pass, with the position, the window index and the corner of the crop of each.

    ``windows`` are pixel values, uint8 ``[B, T, H, W]``, or the arrays of another :class:`.ArraySource`, ``[B, ...]``.
    """

    windows: torch.Tensor
    positions: list[int]
    indices: list[int]
    extension: torch.Tensor | None
    corners: list[tuple[int, int]] | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the micro-batch with its tensors on ``device``; pinned memory is copied asynchronously."""
        extension = None if self.extension is None else self.extension.to(device, non_blocking=True)
        return self._replace(windows=self.windows.to(device, non_blocking=True), extension=extension)


_Item = tuple[int, int, np.ndarray, np.ndarray | None, tuple[int, int] | None]


class _Windows(Dataset[_Item]):
    def __init__(
        self, source: ArraySource, extension: Extension | None, order: SampleOrder, crops: CropPositions | None
    ):
        self.source, self.extension, self.order, self.crops = source, extension, order, crops

    def __getitem__(self, position: int) -> _Item:
        index = self.order.index(position)
        extended = None if self.extension is None else self.extension.read(index)
        window = self.source.read(index)
        corner = None if self.crops is None else self.crops.corner(window, position)
        return position, index, window, extended, corner


def _collate(samples: list[_Item]) -> MicroBatch:
    positions, indices, windows, extensions, corners = zip(*samples, strict=True)
    stored = [item for item in extensions if item is not None]
    return MicroBatch(
        windows=torch.from_numpy(np.stack(windows)),
        positions=list(positions),
        indices=list(indices),
        extension=torch.from_numpy(np.stack(stored)) if stored else None,
        corners=None if corners[0] is None else list(corners),
    )


def _ignore_job_signals(_worker: int) -> None:
    """Ignore the signals that a batch system sends to all processes: the rank needs samples until its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def micro_batches(
    source: ArraySource,
    *,
    seed: int,
    first_step: int,
    global_size: int,
    micro_size: int,
    rank: int,
    world_size: int,
    workers: int = 0,
    extension: Extension | None = None,
    order: SampleOrder | None = None,
    crops: CropPositions | None = None,
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of ``rank`` endlessly, starting at optimizer step ``first_step``.

    ``order`` chooses the windows, by default each once per epoch; ``crops`` chooses the crop of each sample.
    """
    positions = rank_positions(
        first_step=first_step, global_size=global_size, micro_size=micro_size, rank=rank, world_size=world_size
    )
    other_children = set(active_children())
    with warnings.catch_warnings():
        # Of more workers than cores: configurations are for nodes, and on a laptop workers only wait for each other.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(
            _Windows(source, extension, order or SampleOrder(len(source), seed=seed), crops),
            batch_sampler=positions,  # pyright: ignore[reportArgumentType]  an iterator of index lists suffices
            num_workers=workers,
            worker_init_fn=_ignore_job_signals,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=_PREFETCH_FACTOR if workers else None,
        )
        batches = iter(loader)
    atexit.register(_kill_workers, [process for process in active_children() if process not in other_children])
    return batches


def _kill_workers(workers: list[BaseProcess]) -> None:
    """Kill the remaining workers at exit: Python would send SIGTERM, which they ignore, and wait forever."""
    # The SIGCHLD handler of torch raises when a worker dies, which would end this loop after the first.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in workers:
        if process.is_alive():
            process.kill()


def numbers_to_device(numbers: Sequence[float], device: torch.device | str, *, dtype: torch.dtype) -> torch.Tensor:
    """Return a few numbers as a tensor ``[n]`` on ``device``, without waiting for a CUDA device.

    ``torch.tensor(numbers, device=device)`` copies from pageable memory, for which the host waits until the GPU has
    done all work before; from pinned memory the copy is queued.
    """
    if torch.device(device).type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return torch.tensor(numbers, dtype=dtype).pin_memory().to(device, non_blocking=True)


def prefetch_to_device(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yield micro-batches with their tensors on ``device``: the only transfer of training data to the device.

    On a CUDA device the next batch is copied, from pinned memory, on a stream of its own while this one is used.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)

    def start_copy(batch: MicroBatch) -> MicroBatch:
        with torch.cuda.stream(stream):
            return batch.to(device)

    next_batch = start_copy(next(batches))
    while True:
        torch.cuda.current_stream(device).wait_stream(stream)
        batch = next_batch
        for tensor in (batch.windows, batch.extension):
            if tensor is not None:  # keeps the allocator from reusing the memory before this stream has used it
                tensor.record_stream(torch.cuda.current_stream(device))
        next_batch = start_copy(next(batches))
        yield batch


def warn_about_cores(workers: int, *, cores: int) -> None:
    """Log a warning if loader workers and the training process need more CPU cores than this rank has."""
    if workers >= cores:
        logger.warning(
            "data.workers=%d and the training process share %d CPU cores: choose at most %d workers, or request %d "
            "cores per rank (--cpus-per-task)", workers, cores, cores - 1, workers + 1,
        )  # fmt: skip
