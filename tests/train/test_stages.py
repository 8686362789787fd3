"""What each stage trains on, frame by frame, and what it refuses to begin with."""

import json
from pathlib import Path

import pytest
import torch

from simcast_hpc.config import ConfigError, DataError, TrainConfig, from_mapping
from simcast_hpc.data.augment import random_symmetry
from simcast_hpc.data.dataset_spec import built_in_specs
from simcast_hpc.data.encoding import code_to_unit
from simcast_hpc.data.loader import MicroBatch
from simcast_hpc.data.open_windows import open_windows
from simcast_hpc.data.sample_order import draw
from simcast_hpc.distill.rollout import roll_out, to_stored
from simcast_hpc.distill.windows import to_frames, window_of_codes
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.distributed.ranks import RankInfo
from simcast_hpc.inference.load import load_trained
from simcast_hpc.models import build_model, grid_of
from simcast_hpc.train import trainer as run
from simcast_hpc.train.stages import make_stage
from simcast_hpc.train.stages.student_stage import StudentStage
from tests.archives import Row, make_archive, random_codes, tiny_config, write_trained

CPU = torch.device("cpu")
FRAMES_IN, FRAMES_OUT, SHORT = 3, 4, 2


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("stages"), random_codes(5, 11, missing=0.002))


@pytest.fixture(scope="module")
def teacher(root, tmp_path_factory) -> Path:
    torch.manual_seed(1)
    config = tiny_config(tmp_path_factory.mktemp("teacher") / "run", stage="teacher", data=_data(root))
    return write_trained(config)


def _data(root: Path, **over) -> dict:
    return {"dataset": "synthetic", "root": str(root), "window_stride": 2, "max_percent_missing": None} | over


def _config(tmp_path: Path, root: Path, *, stage: str, data: dict | None = None, **over) -> TrainConfig:
    return tiny_config(tmp_path / "run", stage=stage, data=_data(root, **(data or {})), **over)


def _student(tmp_path, root, teacher, *, data: dict | None = None, **student) -> tuple[TrainConfig, StudentStage]:
    config = _config(tmp_path, root, stage="student", data=data, student={"teacher": str(teacher), **student})
    stage = make_stage(config)
    assert isinstance(stage, StudentStage)
    stage.open(open_windows(config.data, split="train", frames=stage.sequence_frames), CPU)
    return config, stage


def _batch(config: TrainConfig, frames: int, positions: list[int], *, extension=None) -> MicroBatch:
    """Return a micro batch whose sample at each position is window ``position % windows``."""
    source = open_windows(config.data, split="train", frames=frames)
    indices = [position % len(source) for position in positions]
    stored = None if extension is None else torch.stack([torch.from_numpy(extension.read(i)) for i in indices])
    return MicroBatch(torch.stack([torch.from_numpy(source.read(i)) for i in indices]), positions, indices, stored)


def _positions_with(k: int, *, purpose: str, choices: int, count: int = 2) -> list[int]:
    """Return positions whose draw is ``k`` under the seed of the tests' configurations."""
    found = (place for place in range(10_000) if draw(place, seed=5, purpose=purpose, choices=choices) == k)
    return [next(found) for _ in range(count)]


def _pseudo(teacher: Path, codes: torch.Tensor, pseudo_dtype: str = "fp16") -> torch.Tensor:
    """Return the stored form of the teacher's frames after the last T real frames of ``codes``."""
    frames = to_frames(codes[:, -FRAMES_IN:])
    return to_stored(roll_out(load_trained(teacher).network, frames, frames_out=FRAMES_OUT), pseudo_dtype)


@pytest.mark.parametrize("k", range(FRAMES_OUT - SHORT + 1))
def test_a_teacher_trains_on_sub_windows_that_begin_anywhere(tmp_path, root, k):
    config = _config(tmp_path, root, stage="teacher")
    stage = make_stage(config)
    assert stage.sequence_frames == FRAMES_IN + FRAMES_OUT
    positions = _positions_with(k, purpose="teacher-start", choices=FRAMES_OUT - SHORT + 1)
    batch = _batch(config, stage.sequence_frames, positions)
    sample = stage.sample(batch, CPU)
    assert sample.inputs.shape == (2, FRAMES_IN, 1, 16, 16)
    seen = batch.codes[:, k : k + FRAMES_IN]
    assert torch.equal(sample.inputs[:, :, 0], torch.where(seen == 255, 0.0, code_to_unit(seen)))
    assert torch.equal(sample.target[:, :, 0], batch.codes[:, k + FRAMES_IN : k + FRAMES_IN + SHORT])
    assert torch.equal(sample.valid, sample.target != 255)


def test_the_direct_stage_trains_on_whole_sequences(tmp_path, root):
    config = _config(tmp_path, root, stage="direct")
    stage = make_stage(config)
    batch = _batch(config, stage.sequence_frames, [3, 4])
    sample = stage.sample(batch, CPU)
    assert torch.equal(sample.target[:, :, 0], batch.codes[:, FRAMES_IN:])
    assert sample.inputs.shape[1] + sample.target.shape[1] == stage.sequence_frames == batch.codes.shape[1]


@pytest.mark.parametrize("stage_name", ["teacher", "direct"])
def test_augmentation_turns_a_whole_sequence(tmp_path, root, stage_name):
    positions = list(range(12))
    plain = _config(tmp_path, root, stage=stage_name)
    turned = _config(tmp_path, root, stage=stage_name, data={"augment": True})
    batch = _batch(plain, FRAMES_IN + FRAMES_OUT, positions)
    wanted = make_stage(plain).sample(batch._replace(codes=random_symmetry(batch.codes, positions, seed=5)), CPU)
    got = make_stage(turned).sample(batch, CPU)
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
    assert not torch.equal(got.inputs, make_stage(plain).sample(batch, CPU).inputs)


@pytest.mark.parametrize("pseudo_dtype", ["fp16", "uint8"])
@pytest.mark.parametrize("k", range(FRAMES_OUT + 1))
def test_a_student_trains_on_windows_of_the_extended_sequence(tmp_path, root, teacher, k, pseudo_dtype):
    config, stage = _student(tmp_path, root, teacher, pseudo_dtype=pseudo_dtype)
    positions = _positions_with(k, purpose="student-start", choices=FRAMES_OUT + 1)
    batch = _batch(config, stage.sequence_frames, positions)
    sample = stage.sample(batch, CPU)
    real, pseudo = to_frames(batch.codes), to_frames(_pseudo(teacher, batch.codes, pseudo_dtype))
    assert torch.equal(sample.inputs[:, :, 0], real.values[:, k : k + FRAMES_IN]), "inputs are always real"
    from_real = FRAMES_OUT - k
    assert torch.equal(sample.target[:, :from_real, 0], real.values[:, k + FRAMES_IN :])
    assert torch.equal(sample.valid[:, :from_real, 0], real.valid[:, k + FRAMES_IN :])
    assert torch.equal(sample.target[:, from_real:, 0], pseudo.values[:, :k])
    assert torch.equal(sample.valid[:, from_real:, 0], pseudo.valid[:, :k])
    assert not sample.target.requires_grad and sample.target.dtype == torch.float32


def test_without_extended_frames_a_students_window_is_the_direct_one(tmp_path, root, teacher):
    config, stage = _student(tmp_path, root, teacher)
    positions = _positions_with(0, purpose="student-start", choices=FRAMES_OUT + 1, count=4)
    batch = _batch(config, stage.sequence_frames, positions)
    student = stage.sample(batch, CPU)
    direct = make_stage(_config(tmp_path, root, stage="direct")).sample(batch, CPU)
    assert torch.equal(student.inputs, direct.inputs) and torch.equal(student.valid, direct.valid)
    assert torch.equal(student.target[student.valid], code_to_unit(direct.target)[direct.valid])
    assert not student.valid.all(), "the archive of this test has missing pixels"


@pytest.mark.parametrize("extension", ["oracle", "none"])
def test_the_controls_train_on_the_events_own_frames(tmp_path, root, extension):
    config = _config(tmp_path, root, stage="student", student={"extension": extension})
    stage = make_stage(config)
    assert stage.sequence_frames == FRAMES_IN + FRAMES_OUT * (2 if extension == "oracle" else 1)
    positions = list(range(8))
    batch = _batch(config, stage.sequence_frames, positions)
    got = stage.sample(batch, CPU)
    choices = FRAMES_OUT + 1 if extension == "oracle" else 1
    first = torch.tensor([draw(p, seed=5, purpose="student-start", choices=choices) for p in positions])
    wanted = window_of_codes(batch.codes, first, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
    assert stage.inputs == {}


def test_a_teacher_and_an_oracle_extension_meet_the_same_starts(tmp_path, root, teacher):
    config, stage = _student(tmp_path, root, teacher)
    oracle = make_stage(_config(tmp_path, root, stage="student", student={"extension": "oracle"}))
    positions = list(range(6))
    longer = _batch(config, oracle.sequence_frames, positions)
    shorter = longer._replace(codes=longer.codes[:, : stage.sequence_frames])
    assert torch.equal(stage.sample(shorter, CPU).inputs, oracle.sample(longer, CPU).inputs)


def test_a_student_may_begin_from_its_teacher(tmp_path, root, teacher):
    _, stage = _student(tmp_path, root, teacher, init="teacher", pseudo_dtype="uint8")
    config = _config(tmp_path, root, stage="direct")
    model = build_model(config.model, frames_in=FRAMES_IN, frames_out=FRAMES_OUT)
    drawn = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage.initialise(model)
    known = load_trained(teacher).network.state_dict()
    copied = [name for name in drawn if name in known and known[name].shape == drawn[name].shape]
    assert copied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, known[name] if name in copied else drawn[name])


SMALL_EARTHFORMER = {
    "kind": "earthformer",
    "width": 8,
    "heads": 1,
    "stem": {"widths": [4, 8], "scales": [2, 2], "convolutions": [1, 1]},
}


def test_a_run_keeps_the_grid_of_its_data_and_its_identity_does_not_name_it(tmp_path, root):
    open_ = run.plan(_config(tmp_path, root, stage="direct", model=SMALL_EARTHFORMER))
    stated = run.plan(_config(tmp_path, root, stage="direct", model={**SMALL_EARTHFORMER, "grid": [16, 16]}))
    assert grid_of(open_.config.model) == (16, 16)
    assert open_.config == stated.config
    assert open_.identity == stated.identity and "model.grid" not in open_.identity


def test_a_teacher_of_another_grid_is_rejected(tmp_path, root):
    model = {**SMALL_EARTHFORMER, "grid": [8, 8]}
    stranger = write_trained(tiny_config(tmp_path / "stranger", stage="teacher", model=model, data=_data(root)))
    with pytest.raises(ConfigError, match=r"teacher tiny takes frames of 8 x 8 pixels .*, got 16 x 16"):
        _student(tmp_path, root, stranger)


def test_a_finished_run_that_names_no_grid_is_rejected(tmp_path, root):
    model = {**SMALL_EARTHFORMER, "grid": [16, 16]}
    folder = write_trained(tiny_config(tmp_path / "run", stage="teacher", model=model, data=_data(root)))
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("grid:\n  - 16\n  - 16\n", "grid: null\n"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml describes no valid model: model\.grid is not set"):
        load_trained(folder)


def test_each_micro_batch_begins_its_dropout_anew(tmp_path, root):
    """A resumed run, or another number of ranks, meets the same masks for the same samples."""
    ranks = TorchRanks(0, 1, CPU)
    config = _config(tmp_path, root, stage="direct")

    def drawn(first_step: int) -> list[int]:
        found = []
        for _ in zip(range(4), run._prepared(run.plan(config), ranks, first_step=first_step), strict=False):
            found.append(torch.initial_seed())
            torch.rand(3)
        return found

    whole, resumed = drawn(0), drawn(1)
    assert whole[2:] == resumed[:2]  # two micro batches a step
    assert len(set(whole)) == 4


def test_a_student_from_scratch_stays_as_drawn(tmp_path, root, teacher):
    _, stage = _student(tmp_path, root, teacher)
    model = torch.nn.Linear(2, 2)
    before = [parameter.clone() for parameter in model.parameters()]
    stage.initialise(model)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"stage": "direct"}, "stage='direct', the student needs 'teacher'"),
        ({"sequence": {"frames_in": 4, "frames_out": 4, "teacher_frames_out": 2}}, r"sequence\.frames_in=4.*needs 3"),
        ({"data": {"dataset": "mch"}}, r"data\.dataset='mch', the student needs 'synthetic'"),
        ({"data": {"dataset": "synthetic", "frame_stride": 2}}, r"data\.frame_stride=2, the student needs 1"),
        ({"data": {"dataset": "synthetic", "block_mean": 2}}, r"data\.block_mean=2, the student needs 1"),
        ({"data": {"dataset": "synthetic", "recode_as": "sevir"}}, r"data\.recode_as='sevir', the student needs None"),
    ],
)
def test_a_teacher_that_speaks_of_other_frames_is_rejected(tmp_path, root, over, says):
    stranger = write_trained(tiny_config(tmp_path / "stranger", **({"stage": "teacher"} | over)))
    with pytest.raises(ConfigError, match=f"stranger has {says}"):
        _student(tmp_path, root, stranger)


def test_an_absent_unfinished_or_damaged_teacher_is_rejected(tmp_path, root, teacher):
    with pytest.raises(ConfigError, match=r"absent is not a finished training run: .*config\.yaml is missing"):
        _student(tmp_path, root, tmp_path / "absent")
    other = write_trained(tiny_config(tmp_path / "other", stage="teacher"))
    weights = other / "weights" / "model.safetensors"
    text = (other / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").write_text(text.replace("hidden_spatial: 4", "hidden_spatial: 8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other belongs to another run: model\.hidden_spatial was 4, is 8"):
        _student(tmp_path, root, other)
    (other / "config.yaml").write_text(text, encoding="utf-8")
    marker = other / "DONE.json"
    kept = marker.read_text(encoding="utf-8")
    marker.write_text(kept.replace('"weights": "', '"weights": "0'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.safetensors does not match .*DONE\.json"):
        _student(tmp_path, root, other)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"not a finished training run: .*model\.safetensors is missing"):
        _student(tmp_path, root, other)


def test_a_run_belongs_to_its_science_its_data_and_its_teacher(tmp_path, root, teacher):
    config, _ = _student(tmp_path, root, teacher)
    identity = run.plan(config).identity
    assert identity["data fingerprint"] == run.plan(config).source.fingerprint
    assert identity["teacher"] == load_trained(teacher).weights_hash
    assert json.loads(json.dumps(identity)) == json.loads(json.dumps(run.plan(config).identity))
    other = make_archive(tmp_path / "other", random_codes(5, 11, seed=9))
    assert (
        run.plan(_config(tmp_path, other, stage="direct")).identity
        != run.plan(_config(tmp_path, root, stage="direct")).identity
    )


@pytest.mark.parametrize(
    ("over", "error", "says"),
    [
        (
            {"batch": {"global_size": 4, "micro_size": 4}},
            ConfigError,
            r"batch\.global_size=4 .* 4 x 2; choose .*=1 or 2",
        ),
        ({"data": {"root": None}}, ConfigError, r"data\.root is not set"),
        ({"data": {"dataset": "sevri"}}, ConfigError, r"the data set 'sevri' \(data\.dataset.* did you mean sevir"),
        ({"data": {"file_names": ["x"]}}, DataError, "split 'train' of synthetic is empty"),
        ({"data": {"frame_stride": 3}}, DataError, r"windows of 7 frames are asked of events of 4 frames"),
        ({"loss": {"thresholds": [30.0], "unit": "dBZ"}}, DataError, r"\[30\.0\] are in 'dBZ'"),
        ({"model": {"kind": "earthformer", "grid": [8, 8]}}, ConfigError, r"model\.grid=\[8, 8\] but .* are 16 x 16"),
        (
            {"model": {"kind": "earthformer"}},
            ConfigError,
            r"the model does not fit: model\.stem\.scales=\[3, 2, 2\].*16 x 16 .*try model\.stem\.scales=\[2, 2, 2\]",
        ),
        (
            {"model": {**SMALL_EARTHFORMER, "encoder_pattern": "axail"}},
            ConfigError,
            "the model does not fit: .*'axail'; did you mean 'axial'",
        ),
        (
            {"model": {"hidden_spatial": 4, "hidden_temporal": 8, "groups": 3}},
            ConfigError,
            "the model does not fit: .*6",
        ),
        ({"model": {"spatial_blocks": 12, "groups": 2}}, ConfigError, "the model does not fit: .*multiples of 64"),
    ],
    ids=["batch", "root", "dataset", "empty", "frames", "unit", "grid", "stem", "pattern", "sizes", "halving"],
)
def test_a_run_that_cannot_begin_is_rejected_before_any_device(tmp_path, root, monkeypatch, over, error, says):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = from_mapping(TrainConfig, _merged(_config(tmp_path, root, stage="direct"), over))
    with pytest.raises(error, match=says):
        run.plan(config)


def _merged(config: TrainConfig, over: dict) -> dict:
    data = json.loads(config.model_dump_json())
    for section, held in over.items():
        data[section] = held if "kind" in held else {**data[section], **held}
    return data


def test_a_run_folder_that_cannot_be_written_stops_a_run_before_it_joins_the_others(tmp_path, root, monkeypatch):
    (tmp_path / "file").write_text("")
    config = tiny_config(tmp_path / "file" / "run", data=_data(root))
    monkeypatch.setattr(run, "join_process_group", lambda **_: pytest.fail("the ranks met"))
    with pytest.raises(ConfigError, match=r"run_dir=.*file/run cannot be written: Not a directory"):
        run.run(config)


def test_what_the_codes_mean_belongs_to_a_run_and_its_name_does_not(tmp_path, root):
    """A description moved to another file is the same data; other thresholds in it are another loss."""
    text = (built_in_specs()["synthetic"]).read_text(encoding="utf-8")
    files = {
        "moved": text,
        "renamed": text.replace("name: synthetic", "name: storms"),
        "other": text.replace("181, 219]", "181, 200]"),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    made = {
        name: run.plan(
            _config(tmp_path, root, stage="direct", data={"dataset": str(tmp_path / f"{name}.yaml")})
        ).identity
        for name in files
    }
    assert made["moved"] == made["renamed"] == run.plan(_config(tmp_path, root, stage="direct")).identity
    assert made["other"] != made["moved"]


def test_a_rejected_run_leaves_what_stands_alone(tmp_path, root, monkeypatch):
    config = _config(tmp_path, root, stage="direct")
    ready = run.plan(config)
    ready.folder.prepare(config)
    ready.folder.finish(ready.identity, steps=4)
    kept = ready.folder.config.read_text(encoding="utf-8")
    monkeypatch.setattr(run, "find_rank", lambda _: RankInfo(0, 1, 0, "none"))
    with pytest.raises(ConfigError, match="belongs to another run: seed was 5, is 6"):
        run.run(_config(tmp_path, root, stage="direct", seed=6))
    assert ready.folder.config.read_text(encoding="utf-8") == kept


def test_a_run_that_is_done_is_not_begun_again(tmp_path, root, monkeypatch):
    config = _config(tmp_path, root, stage="direct")
    ready = run.plan(config)
    ready.folder.prepare(config)
    ready.folder.finish(ready.identity, steps=4)
    ready.folder.weights.parent.mkdir()
    ready.folder.weights.touch()
    monkeypatch.setattr(run, "join_process_group", lambda **_: pytest.fail("the run began"))
    monkeypatch.setattr(run, "find_rank", lambda _: RankInfo(0, 1, 0, "none"))
    run.run(config)


def test_events_of_other_splits_are_never_trained_on(tmp_path):
    codes = random_codes(3, 11)
    dates = ("2018-06-01", "2019-03-01", "2019-07-01")
    root = make_archive(tmp_path / "a", codes, rows=[Row(f"E{i}", i, time_utc=date) for i, date in enumerate(dates)])
    source = run.plan(_config(tmp_path, root, stage="direct")).source
    assert {source.key(index).event for index in range(len(source))} == {"E0"}
