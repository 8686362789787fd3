"""The commands that run on the emulated device and, for comparison, on the CPU: all stages, and forecasts."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simcast_hpc.config import FORECASTING, TrainConfig, from_mapping, to_yaml
from simcast_hpc.data.synthetic import write_archive
from simcast_hpc.inference.trained_ensemble import denoiser
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from tests.archives import tiny_config
from tests.generative_runs import AUTOENCODER, DENOISER, SAMPLING, randomize, write_finished
from tests.multi_rank.runs import environment, free_port, overrides
from tests.radar.radar_files import moment, small_model, storm, write_odim
from tests.train.conftest import SMALL_EARTHFORMER

STEPS = 3
_TIMEOUT_SECONDS = 500
_RANK_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID")


@dataclass(frozen=True)
class Result:
    """Exit status and output of each rank of a job."""

    status: list[int]
    output: list[str]

    def succeeded(self) -> bool:
        """Return whether every rank ended with status 0; print the output otherwise."""
        if any(self.status):
            print(*(text[-3000:] for text in self.output), sep="\n---\n")
        return not any(self.status)


class Jobs:
    """Jobs in a folder, which contains their inputs and outputs, run by ``device_jobs.py`` in one process."""

    def __init__(self, folder: Path, archive: Path):
        self.folder, self.archive = folder, archive
        self._jobs: list[dict[str, Any]] = []

    def add(self, name: str, *arguments: object, ranks: Sequence[Mapping[str, str]] = ({},), resumes: str = "") -> None:
        """Add ``simcast ARGUMENTS``; it may start from the first checkpoint of the run ``resumes``."""
        job = {"name": name, "arguments": [str(one) for one in arguments], "ranks": [dict(rank) for rank in ranks]}
        if resumes:
            checkpoint = Path("checkpoints") / "step-00000001"
            job["copy"] = [str(self.folder / resumes / checkpoint), str(self.folder / name / checkpoint)]
        self._jobs.append(job)

    def train(self, name: str, *, config: str = "", ranks: Any = ({},), resumes: str = "", **changes: object) -> None:
        """Add a training run in the directory ``name``, by default of the configuration of this name."""
        path = self.folder / f"{config or name}.yaml"
        changes = {"run_dir": self.folder / name} | changes
        self.add(name, "train", path, *overrides(**changes), ranks=ranks, resumes=resumes)

    def run(self, **variables: str) -> dict[str, Result]:
        """Run all jobs in one process with these environment variables and return their results by name."""
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(self._jobs), encoding="utf-8")
        kept = {key: value for key, value in environment().items() if key != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.emulated_device.device_jobs", str(path)],
            env=kept | {"SIMCAST_KERNELS": "reference", "DEVICE_LIBRARY": ""} | variables,
            capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        results = {}
        for job in self._jobs:
            data = json.loads((self.folder / f"{job['name']}.json").read_text(encoding="utf-8"))
            results[job["name"]] = Result(data["status"], data["output"])
            if os.environ.get("SIMCAST_JOB_SECONDS"):
                print(job["name"], data["seconds"], "s", data["status"])
        return results

    def write_config(self, name: str, stage: str, **changes: Any) -> None:
        """Write a small configuration of a stage to ``NAME.yaml``."""
        sections: dict[str, Any] = {
            "name": name, "run_dir": str(self.folder / name), "stage": stage, "max_steps": STEPS,
            "data": {"dataset": "synthetic", "root": str(self.archive), "window_stride": 4},
            "sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2},
            "batch": {"global_size": 4, "micro_size": 2}, "engine": {"precision": "fp32"}, "log": {"every_steps": 1},
            "optimizer": {"schedule": "constant", "learning_rate": 1e-3},
            "checkpoint": {"every_steps": 1, "keep": STEPS},
        }  # fmt: skip
        if stage in FORECASTING:
            sections["model"] = {"hidden_spatial": 4, "hidden_temporal": 16, "temporal_blocks": 2, "groups": 2}
        config = from_mapping(TrainConfig, sections | changes)
        (self.folder / f"{name}.yaml").write_text(to_yaml(config), encoding="utf-8")


def make_archive(folder: Path) -> Path:
    """Write six training events of 16 x 16 pixels, one for validation and two for tests."""
    write_archive(folder / "storms", seed=5, events={"train": 6, "val": 1, "test": 2}, size=16, frames_per_event=12)
    return folder / "storms"


def add_stages(jobs: Jobs) -> None:
    """Add every stage in fp32; those that need a GPU's deterministic algorithms to be checked have them enabled."""
    folder, deterministic = jobs.folder, {"precision": "fp32", "deterministic": True}
    jobs.write_config("teacher", "teacher")
    jobs.train("teacher")
    student = {"teacher": str(folder / "teacher")}
    jobs.write_config("student", "student", student=student, engine=deterministic, ema={"decay": 0.9})
    jobs.train("student")
    jobs.write_config("cached", "student", student={**student, "rollouts": "cached"})
    jobs.add("rollout", "rollout", folder / "cached.yaml")
    jobs.train("cached")
    jobs.write_config("direct", "direct", engine=deterministic, model=SMALL_EARTHFORMER)
    jobs.train("direct")
    generative = AUTOENCODER | {"adversarial_start": 1, "discriminator": {"width": 8, "groups": 2, "layers": 2}}
    jobs.write_config("autoencoder", "autoencoder", autoencoder=generative, engine=deterministic)
    jobs.train("autoencoder")
    inputs = {"autoencoder": str(folder / "autoencoder"), "student": str(folder / "student"), "casformer": DENOISER}
    validation = {"validation": {"every_steps": 2, "windows": 1}}
    jobs.write_config(
        "diffusion",
        "diffusion",
        diffusion=inputs | validation,
        sampling=SAMPLING | {"members": 2},
        engine=deterministic,
    )
    jobs.train("diffusion")


def add_forecasts(jobs: Jobs) -> None:
    """Add evaluation, sampling, export and prediction in tiles from the runs of :func:`add_stages` and radar files."""
    folder = jobs.folder
    runs = [folder / name for name in ("teacher", "student", "direct", "diffusion")]
    jobs.add("evaluate", "evaluate", *runs, "--out", folder / "scores", "--draws", 0, "--tables-only")
    for precision in ("fp32", "bf16"):
        changes = ["--set", f"precision={precision}", "--single"]
        jobs.add(f"sample-{precision}", "sample", folder / "diffusion", "--out", folder / f"{precision}.h5", *changes)
    jobs.add("export", "export", folder / "student", folder / "exported", "--grid", 16, 16)
    model, ensemble = make_radar_runs(folder / "radar-runs")
    (folder / "frames").mkdir()
    for number in range(3):
        write_odim(folder / "frames" / f"{number}.h5", storm(number), moment(number))
    tiles = [folder / "frames", "--tile", 32, 32, "--write", "nc", "--batch", 1]
    jobs.add("predict", "predict", model, *tiles, "--out", folder / "predicted")
    for precision in ("fp32", "bf16"):
        out = ["--out", folder / f"predicted-{precision}", "--set", f"precision={precision}", "--set", "members=2"]
        jobs.add(f"predict-{precision}", "predict", ensemble, *tiles, *out)


def make_radar_runs(folder: Path) -> tuple[Path, Path]:
    """Write finished runs ``student`` and ``diffusion`` with random weights for 1 km reflectivity; return both."""
    data = {"data": {"dataset": "fmi", "crop": 32}}
    student = small_model(folder / "student")
    autoencoder = tiny_config(folder / "autoencoder", stage="autoencoder", **data, autoencoder=AUTOENCODER)
    torch.manual_seed(2)
    write_finished(autoencoder, Autoencoder(autoencoder.autoencoder.model), {}, scale_factor="1.25")
    inputs = {"autoencoder": str(folder / "autoencoder"), "student": str(student), "casformer": DENOISER}
    config = tiny_config(folder / "diffusion", stage="diffusion", **data, diffusion=inputs, sampling=SAMPLING)
    hashes = {name: file_hash(RunDirectory(folder / name).weights) for name in ("autoencoder", "student")}
    return student, write_finished(config, randomize(denoiser(config, channels=2), seed=3), hashes)


def srun(*visible: str | None, devices: int = 2) -> list[dict[str, str]]:
    """Return the variables of ranks under srun on a node with ``devices``; each sees the given ones (None: all)."""
    port, ranks = str(free_port()), []
    for rank, ids in enumerate(visible):
        own = {name: str(rank) for name in _RANK_VARIABLES}
        own |= {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(len(visible)), "EMULATED_DEVICES": str(devices)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(own if ids is None else own | {"CUDA_VISIBLE_DEVICES": ids})
    return ranks
