"""A trace of some optimizer steps by torch.profiler."""

import logging
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from simcast_hpc.config import ConfigError
from simcast_hpc.storage.atomic_files import atomic_file, write_text

logger = logging.getLogger(__name__)
_TABLE_ROWS = 30


@dataclass(frozen=True)
class ProfileRequest:
    """Optimizer steps ``first`` to ``last``, both included and counted from 1, on some ranks."""

    first: int
    last: int
    ranks: Collection[int] = (0,)

    @classmethod
    def parse(cls, steps: str, ranks: str = "0") -> "ProfileRequest":
        """Read ``START:STOP`` and comma-separated ranks.

        Raises:
            ConfigError: a value is invalid.
        """
        match = re.fullmatch(r"(\d+):(\d+)", steps.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--profile {steps} is invalid; give START:STOP, two optimizer steps counted from 1, both included, "
                "such as 100:102"
            )
        if re.fullmatch(r"\d+(,\d+)*", ranks.strip()) is None:
            raise ConfigError(f"--profile-ranks {ranks} is invalid; give ranks separated by commas, such as 0,8")
        return cls(int(match[1]), int(match[2]), tuple(int(rank) for rank in ranks.split(",")))

    def reject_ranks(self, world_size: int) -> None:
        """Raise an error if a rank does not exist.

        Raises:
            ConfigError: a rank is ``world_size`` or more.
        """
        for rank in self.ranks:
            if rank >= world_size:
                raise ConfigError(f"--profile-ranks contains {rank}; valid are 0 to {world_size - 1}")


class StepProfiler:
    """Profiles the requested steps and writes a trace and a table of operators to a folder.

    The trace, ``rank-R-steps-A-B.json.gz`` in Kineto's format, opens in Perfetto (https://ui.perfetto.dev). The parts
    of a step are ranges in it. One step before the first is discarded, because starting the tracer takes time.
    """

    def __init__(self, request: ProfileRequest, folder: Path, *, rank: int, first_step: int):
        """Prepare to profile a run that has done ``first_step`` steps."""
        self._request, self._folder, self._rank = request, folder, rank
        self._first = max(request.first, first_step + 1)
        self._profile: profile | None = None
        self._is_active = rank in request.ranks
        if self._is_active and self._first > request.last:
            logger.warning("--profile %d:%d: step %d is done already; nothing is profiled", request.first, request.last,
                           first_step)  # fmt: skip
            self._is_active = False

    def before_step(self, done: int) -> None:
        """Start before the first profiled step, or one step earlier; ``done`` steps are done."""
        if not self._is_active or self._profile is not None or done + 1 not in (self._first - 1, self._first):
            return
        warmup, steps = self._first - done - 1, self._request.last - self._first + 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Profiler won't be using warmup")  # of a run that starts at this step
            steps_to_trace = schedule(wait=0, warmup=warmup, active=steps, repeat=1)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(
            activities=activities,
            schedule=steps_to_trace,
            on_trace_ready=self._write,
            profile_memory=True,
            record_shapes=True,
        )
        self._profile.start()

    def __call__(self, step: int, _report: object) -> None:
        """Count a step; after the last one, write the files."""
        if self._profile is None:
            return
        self._profile.step()
        if step >= self._request.last:
            self.close()

    def close(self) -> None:
        """Stop; steps that were profiled so far are written."""
        if self._profile is not None:
            self._profile.stop()
            self._profile, self._is_active = None, False

    def _write(self, profiled: profile) -> None:
        stem = f"rank-{self._rank}-steps-{self._first}-{self._request.last}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trace = self._folder / f"{stem}.json.gz"
            with atomic_file(trace) as temporary:
                # Kineto derives the compression from the file name.
                unnamed = temporary.with_name(f"{temporary.name}.json.gz")
                try:
                    profiled.export_chrome_trace(str(unnamed))
                    unnamed.replace(temporary)
                finally:
                    unnamed.unlink(missing_ok=True)
            averages = profiled.key_averages()
            by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            write_text(self._folder / f"{stem}.txt", averages.table(sort_by=by, row_limit=_TABLE_ROWS))
        except OSError as error:  # a full disk ends no training
            logger.warning("the trace cannot be written to %s: %s", self._folder, error)
        else:
            logger.info("wrote %s", trace)
