"""Training samples of the stages teacher, direct and student, frame by frame; which teachers a student accepts."""

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from simcast_hpc.config import ConfigError, TrainConfig
from simcast_hpc.data.augment import random_symmetry
from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.sample_order import random_integer
from simcast_hpc.distill.cut_windows import to_frames, window_of_codes
from simcast_hpc.distill.rollout import roll_out, to_stored
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.models import build_model
from simcast_hpc.train.stages import STAGES, ForecastStage
from simcast_hpc.train.stages.student_stage import StudentStage
from simcast_hpc.train.trainer import plan
from tests.archives import make_archive, random_codes, tiny_config, write_trained
from tests.train.conftest import SMALL_EARTHFORMER, data_section

CPU = torch.device("cpu")
FRAMES_IN, FRAMES_OUT, SHORT = 3, 4, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("stages"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="module")
def teacher(root, tmp_path_factory) -> Path:
    torch.manual_seed(1)
    config = tiny_config(tmp_path_factory.mktemp("teacher") / "run", stage="teacher", data=data_section(root))
    return write_trained(config)


def _stage(tmp_path: Path, root: Path, *, stage: str, data: dict | None = None, **over) -> ForecastStage:
    config = tiny_config(tmp_path / "run", stage=stage, data=data_section(root, **(data or {})), **over)
    planned = plan(config).stage
    assert isinstance(planned, ForecastStage)
    return planned


def _student(tmp_path, root, teacher, *, data: dict | None = None, **student) -> StudentStage:
    stage = _stage(tmp_path, root, stage="student", data=data, student={"teacher": str(teacher), **student})
    assert isinstance(stage, StudentStage)
    stage.prepare(SimpleNamespace(device=CPU))  # pyright: ignore[reportArgumentType]
    return stage


def _batch(config: TrainConfig, frames: int, positions: list[int]) -> MicroBatch:
    """Return a micro-batch whose sample at each position is window ``position % windows``."""
    source = open_windows(config.data, split="train", frames=frames)
    indices = [position % len(source) for position in positions]
    return MicroBatch(torch.stack([torch.from_numpy(source.read(i)) for i in indices]), positions, indices, None)


def _positions_with(k: int, *, purpose: str, choices: int, count: int = 2) -> list[int]:
    """Return positions whose random start is ``k`` under the seed of the tests' configurations."""
    matching = (
        position
        for position in range(10_000)
        if random_integer(position, seed=5, purpose=purpose, choices=choices) == k
    )
    return [next(matching) for _ in range(count)]


def _pseudo_frames(teacher: Path, codes: torch.Tensor, pseudo_dtype: str) -> torch.Tensor:
    """Return the stored form of the teacher's frames after the last T real frames of ``codes``."""
    frames = to_frames(codes[:, -FRAMES_IN:])
    return to_stored(roll_out(load_trained(teacher).network, frames, frames_out=FRAMES_OUT), pseudo_dtype)


def test_stages_are_those_of_the_configuration():
    assert tuple(STAGES) == get_args(TrainConfig.model_fields["stage"].annotation)
    assert all(stage.name == name for name, stage in STAGES.items())


@pytest.mark.parametrize("k", range(FRAMES_OUT - SHORT + 1))
def test_teacher_trains_on_sub_windows_at_random_starts(tmp_path, root, k):
    stage = _stage(tmp_path, root, stage="teacher")
    positions = _positions_with(k, purpose="teacher-start", choices=FRAMES_OUT - SHORT + 1)
    batch = _batch(stage.config, FRAMES_IN + FRAMES_OUT, positions)
    sample = stage.sample(batch)
    assert sample.inputs.shape == (2, FRAMES_IN, 1, 16, 16)
    past = batch.windows[:, k : k + FRAMES_IN]
    assert torch.equal(sample.inputs[:, :, 0], torch.where(past == 255, 0.0, code_to_unit(past)))
    assert torch.equal(sample.target[:, :, 0], batch.windows[:, k + FRAMES_IN : k + FRAMES_IN + SHORT])
    assert torch.equal(sample.valid, sample.target != 255)


def test_direct_trains_on_whole_sequences(tmp_path, root):
    stage = _stage(tmp_path, root, stage="direct")
    batch = _batch(stage.config, stage.window_frames(stage.config), [3, 4])
    sample = stage.sample(batch)
    assert torch.equal(sample.target[:, :, 0], batch.windows[:, FRAMES_IN:])
    assert sample.inputs.shape[1] + sample.target.shape[1] == batch.windows.shape[1] == FRAMES_IN + FRAMES_OUT


@pytest.mark.parametrize("name", ["teacher", "direct", "student"])
def test_example_sample_has_the_shapes_of_a_sample(tmp_path, root, teacher, name):
    stage = _stage(tmp_path, root, stage=name, student={"teacher": str(teacher)} if name == "student" else {})
    sample = stage.sample(_batch(stage.config, FRAMES_IN + FRAMES_OUT, [0, 1]))
    assert [part.shape for part in stage.example_sample(2, CPU)] == [part.shape for part in sample]


NOISE = {
    "model": tiny_config(Path("run")).model.model_dump(mode="json") | {"noise_channels": 2},
    "loss": {"mse_weight": 0.0, "crps_weight": 1.0, "members": 3},
}


@pytest.mark.parametrize("name", ["direct", "student"])
def test_noise_of_training_is_a_function_of_seed_position_and_member(tmp_path, root, teacher, name):
    stage = _stage(tmp_path, root, stage=name, **NOISE, student={"teacher": str(teacher)} if name == "student" else {})
    frames = FRAMES_IN + FRAMES_OUT
    sample = stage.sample(_batch(stage.config, frames, [2, 7]))
    noise = sample[3]
    assert noise.shape == (2, 3, 4, 2, 16, 16)
    assert [part.shape for part in stage.example_sample(2, CPU)] == [part.shape for part in sample]
    torch.manual_seed(99)
    again = stage.sample(_batch(stage.config, frames, [7, 2, 8]))[3]
    assert torch.equal(again[[1, 0]], noise)
    rows = torch.cat([noise, again[2:]]).flatten(0, 1).flatten(1)
    # 8192 numbers: the standard error of a mean is 0.02, of a correlation of two rows of 2048 numbers 0.022
    assert (torch.corrcoef(rows) - torch.eye(9)).abs().max() < 0.1
    assert abs(rows.mean()) < 0.05 and abs(rows.std() - 1) < 0.05
    loss = stage.module()(*sample)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.requires_grad
    other = _stage(tmp_path, root, stage="direct", seed=6, **NOISE)
    assert not torch.equal(other.sample(_batch(other.config, frames, [2, 7]))[3], noise)


@pytest.mark.parametrize("name", ["teacher", "direct"])
def test_augmentation_flips_whole_sequences(tmp_path, root, name):
    plain, flipped = (_stage(tmp_path, root, stage=name, data={"augment": augment}) for augment in (False, True))
    positions = list(range(12))
    batch = _batch(plain.config, FRAMES_IN + FRAMES_OUT, positions)
    expected = plain.sample(batch._replace(windows=random_symmetry(batch.windows, positions, seed=5)))
    sample = flipped.sample(batch)
    assert all(torch.equal(*pair) for pair in zip(sample, expected, strict=True))
    assert not torch.equal(sample.inputs, plain.sample(batch).inputs)


@pytest.mark.parametrize("pseudo_dtype", ["fp16", "uint8"])
@pytest.mark.parametrize("k", range(FRAMES_OUT + 1))
def test_student_trains_on_windows_of_the_extended_sequence(tmp_path, root, teacher, k, pseudo_dtype):
    stage = _student(tmp_path, root, teacher, pseudo_dtype=pseudo_dtype)
    positions = _positions_with(k, purpose="student-start", choices=FRAMES_OUT + 1)
    batch = _batch(stage.config, FRAMES_IN + FRAMES_OUT, positions)
    sample = stage.sample(batch)
    real, pseudo = to_frames(batch.windows), to_frames(_pseudo_frames(teacher, batch.windows, pseudo_dtype))
    assert torch.equal(sample.inputs[:, :, 0], real.values[:, k : k + FRAMES_IN]), "inputs are always real"
    of_real = FRAMES_OUT - k
    assert torch.equal(sample.target[:, :of_real, 0], real.values[:, k + FRAMES_IN :])
    assert torch.equal(sample.valid[:, :of_real, 0], real.valid[:, k + FRAMES_IN :])
    assert torch.equal(sample.target[:, of_real:, 0], pseudo.values[:, :k])
    assert torch.equal(sample.valid[:, of_real:, 0], pseudo.valid[:, :k])
    assert not sample.target.requires_grad and sample.target.dtype == torch.float32


def test_student_window_without_pseudo_frames_equals_the_direct_one(tmp_path, root, teacher):
    stage = _student(tmp_path, root, teacher)
    positions = _positions_with(0, purpose="student-start", choices=FRAMES_OUT + 1, count=4)
    batch = _batch(stage.config, FRAMES_IN + FRAMES_OUT, positions)
    student = stage.sample(batch)
    direct = _stage(tmp_path, root, stage="direct").sample(batch)
    assert torch.equal(student.inputs, direct.inputs) and torch.equal(student.valid, direct.valid)
    assert torch.equal(student.target[student.valid], code_to_unit(direct.target)[direct.valid])
    assert not student.valid.all(), "the archive of this test has missing pixels"


def test_student_that_starts_last_has_only_pseudo_frames_as_targets(tmp_path, root, teacher):
    """With ``student.start: last`` it learns the teacher's rollout: the window of a random start that is the last."""
    last = _student(tmp_path, root, teacher, start="last")
    positions = list(range(4))
    sample = last.sample(_batch(last.config, FRAMES_IN + FRAMES_OUT, positions))
    at_end = _positions_with(FRAMES_OUT, purpose="student-start", choices=FRAMES_OUT + 1, count=4)
    batch = _batch(last.config, FRAMES_IN + FRAMES_OUT, at_end)
    random = _student(tmp_path, root, teacher).sample(batch)
    assert all(torch.equal(*pair) for pair in zip(last.sample(batch), random, strict=True))
    assert sample.target.is_floating_point() and sample.inputs.shape[1] == FRAMES_IN


def test_student_that_starts_last_needs_an_extension(tmp_path, root):
    with pytest.raises(ConfigError, match=r"student\.start=last needs frames that extend the sequence"):
        _stage(tmp_path, root, stage="student", student={"extension": "none", "start": "last"})


@pytest.mark.parametrize("extension", ["oracle", "none"])
def test_controls_train_on_real_frames_only(tmp_path, root, teacher, extension):
    stage = _stage(tmp_path, root, stage="student", student={"extension": extension})
    frames = FRAMES_IN + FRAMES_OUT * (2 if extension == "oracle" else 1)
    assert stage.source.frames == stage.window_frames(stage.config) == frames
    positions = list(range(8))
    batch = _batch(stage.config, frames, positions)
    sample = stage.sample(batch)
    choices = FRAMES_OUT + 1 if extension == "oracle" else 1
    first = torch.tensor([random_integer(p, seed=5, purpose="student-start", choices=choices) for p in positions])
    expected = window_of_codes(batch.windows, first, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)
    assert all(torch.equal(*pair) for pair in zip(sample, expected, strict=True))
    assert stage.inputs == {}
    if extension == "oracle":  # the same windows as of a student with a teacher
        shorter = batch._replace(windows=batch.windows[:, : FRAMES_IN + FRAMES_OUT])
        assert torch.equal(_student(tmp_path, root, teacher).sample(shorter).inputs, sample.inputs)


def test_student_is_initialized_from_its_teacher_on_request(tmp_path, root, teacher):
    model = build_model(tiny_config(tmp_path).model, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _student(tmp_path, root, teacher).initialize(model)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.state_dict().items()), (
        "scratch is the default"
    )
    _student(tmp_path, root, teacher, init="teacher", pseudo_dtype="uint8").initialize(model)
    trained = load_trained(teacher).network.state_dict()
    copied = [name for name in fresh if name in trained and trained[name].shape == fresh[name].shape]
    assert copied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[name] if name in copied else fresh[name])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"stage": "direct"}, "stage='direct', the student needs 'teacher'"),
        ({"sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2}}, r"sequence\.frames_in=4.*needs 3"),
        ({"data": {"dataset": "synthetic", "frame_stride": 2}}, r"data\.frame_stride=2, the student needs 1"),
        ({"data": {"dataset": "synthetic", "block_mean": 2}}, r"data\.block_mean=2, the student needs 1"),
        ({"data": {"dataset": "synthetic", "recode_as": "sevir"}}, r"data\.recode_as='sevir', the student needs None"),
    ],
)
def test_rejects_teacher_of_other_frames_or_data(tmp_path, root, over, message):
    other = write_trained(tiny_config(tmp_path / "other", **({"stage": "teacher"} | over)))
    with pytest.raises(ConfigError, match=f"other has {message}"):
        _student(tmp_path, root, other)


def test_rejects_teacher_of_another_grid(tmp_path, root):
    model = {**SMALL_EARTHFORMER, "grid": [8, 8]}
    other = write_trained(tiny_config(tmp_path / "other", stage="teacher", model=model, data=data_section(root)))
    with pytest.raises(ConfigError, match=r"teacher tiny takes frames of 8 x 8 pixels .*, got 16 x 16"):
        _student(tmp_path, root, other)


def test_rejects_finished_run_without_grid(tmp_path, root):
    model = {**SMALL_EARTHFORMER, "grid": [16, 16]}
    folder = write_trained(tiny_config(tmp_path / "run", stage="teacher", model=model, data=data_section(root)))
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("grid:\n  - 16\n  - 16\n", "grid: null\n"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml describes no valid model: model\.grid is not set"):
        load_trained(folder)


def test_rejects_absent_changed_and_damaged_teachers(tmp_path, root):
    with pytest.raises(ConfigError, match=r"absent is not a finished training run: .*config\.yaml is missing"):
        _student(tmp_path, root, tmp_path / "absent")
    other = write_trained(tiny_config(tmp_path / "other", stage="teacher"))
    config, marker, weights = other / "config.yaml", other / "DONE.json", other / "weights" / "model.safetensors"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("hidden_spatial: 4", "hidden_spatial: 8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other belongs to another run: model\.hidden_spatial was 4, is 8"):
        _student(tmp_path, root, other)
    config.write_text(text, encoding="utf-8")
    hashes = marker.read_text(encoding="utf-8")
    marker.write_text(hashes.replace('"weights": "', '"weights": "0'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.safetensors does not match .*DONE\.json"):
        _student(tmp_path, root, other)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"not a finished training run: .*model\.safetensors is missing"):
        _student(tmp_path, root, other)
