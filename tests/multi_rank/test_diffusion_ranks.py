"""Stage diffusion and its ensembles on one and on two ranks: equal losses and members within 1e-5."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from simcast_hpc.config import to_yaml
from simcast_hpc.inference.trained_ensemble import load_autoencoder
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.train.ensemble_validation import EnsembleValidation
from tests.archives import Row, make_archive, random_codes
from tests.generative_runs import OneRank, diffusion_config, make_runs
from tests.multi_rank.runs import losses, metrics, overrides, simcast, weights

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training events and one of the split val."""
    rows = [Row(f"E{n}", n, time_utc="2019-02-01 12:00:00" if n == 5 else "2018-06-01 12:00:00") for n in range(6)]
    return make_archive(tmp_path_factory.mktemp("radar"), random_codes(6, 11, missing=0.002), rows=rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"), root)


def train(launcher: str, ranks: int, run_dir: Path, runs: Path, root: Path, **changes: object) -> list[float]:
    path = run_dir.parent / f"{run_dir.name}.yaml"
    path.write_text(to_yaml(diffusion_config(run_dir, runs, root)), encoding="utf-8")
    changed = {"log__every_steps": 1, "batch__micro_size": 1, "ema__decay": 0.9, **changes}
    simcast(launcher, ranks, ["train", str(path), *overrides(**changed)])
    return losses(run_dir)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, runs: Path, root: Path) -> tuple[Path, list[float]]:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    return run_dir, train("python", 1, run_dir, runs, root, engine__zero_stage=0)


def validation_scores(run_dir: Path, runs: Path, root: Path) -> dict[str, float]:
    """Return the validation of a run's exported average, on a single rank without a process group."""
    config = diffusion_config(run_dir, runs, root, validation={"every_steps": 3, "windows": 3})
    parts = load_autoencoder(runs / "autoencoder"), load_trained(runs / "student")
    return EnsembleValidation(config, *parts).scores(weights(run_dir), OneRank())  # pyright: ignore


@pytest.mark.parametrize("stage", [2, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 1, 3))])
def test_two_ranks_equal_one_rank(stage, one_rank, tmp_path, runs, root):
    single, expected = one_rank
    checked = {"diffusion__validation__every_steps": 3, "diffusion__validation__windows": 3}
    trained = train("torchrun", 2, tmp_path / "run", runs, root, engine__zero_stage=stage, **checked)
    assert trained == pytest.approx(expected, abs=1e-5), "independent of ranks and validation"
    validated = {line["step"]: line for line in metrics(tmp_path / "run") if "validation/crps" in line}
    assert list(validated) == [3, 4]
    assert validation_scores(single, runs, root) == pytest.approx(
        {
            key.removeprefix("validation/"): value
            for key, value in validated[4].items()
            if key.startswith("validation/")
        },
        abs=1e-4,
    )
    first, second = weights(single), weights(tmp_path / "run")
    # Keys' biases shift all scores alike, which a softmax does not see: their gradients are rounding.
    assert max((first[name] - second[name]).abs().max().item() for name in first if "project.bias" not in name) < 1e-5
    blocks = [np.load(path / "latents" / "block-000000.npy") for path in (single, tmp_path / "run")]
    assert np.array_equal(*blocks), "latents are independent of the number of ranks"


# Two ranks sample one window each, and then share the members of the third.
def draw(runs: Path, out: Path, *, ranks: int, chunk: int) -> tuple[torch.Tensor, float]:
    """Return the members that this number of ranks writes in float32, and the share of latents that was clipped."""
    arguments = ["sample", str(runs / "diffusion"), "--split", "train", "--windows", "3", "--out", str(out), "--single"]
    launcher = "python" if ranks == 1 else "torchrun"
    simcast(launcher, ranks, [*arguments, *overrides(chunk=chunk, members=5, clip=0.5)])
    with h5py.File(out) as file:
        return torch.from_numpy(np.asarray(file["forecast"])), float(np.asarray(file.attrs["clip_rate"]))


@pytest.fixture(scope="module")
def drawn_alone(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, float]:
    return draw(runs, tmp_path_factory.mktemp("drawn") / "alone.h5", ranks=1, chunk=5)


@pytest.mark.parametrize(
    ("ranks", "chunk"), [(2, 1), pytest.param(2, 5, marks=pytest.mark.slow), pytest.param(1, 1, marks=pytest.mark.slow)]
)
def test_members_are_the_same_on_one_and_two_ranks_in_chunks_of_one_and_of_five(
    ranks, chunk, drawn_alone, runs, tmp_path
):
    wanted, wanted_rate = drawn_alone
    members, rate = draw(runs, tmp_path / "members.h5", ranks=ranks, chunk=chunk)
    assert members.shape == (3, 5, 4, 16, 16) and members.dtype == torch.float32
    assert (members - wanted).abs().max() <= 1e-5
    apart = (wanted[:, :, None] - wanted[:, None]).abs().flatten(3).amax(-1) + torch.eye(5)
    assert apart.min() > 1e-3, "members that repeat one another would agree too"
    assert wanted_rate > 0.01 and rate == pytest.approx(wanted_rate, rel=1e-3)
