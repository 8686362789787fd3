"""Names that become files or words of a command, and paths of a data set description."""

import re
from types import SimpleNamespace

import pytest

from simcast_hpc.commands.evaluate import _parse_rows
from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping
from simcast_hpc.config.names import PATTERN, file_stem
from simcast_hpc.data.dataset_spec import DatasetSpec, read_spec
from simcast_hpc.data.download.object_transfer import (
    DownloadError,
    RemoteObject,
    RetryPolicy,
    download_object,
    matches_etag,
)
from simcast_hpc.data.download.sevir_download import list_objects, local_path

INVALID = [
    "../x", "/abs", "a/b", "*", "a b", "", ".", "..", ".x", "-x", "a\n", "a\nb", " a", "a ", "a\tb", "x" * 101, "a;b",
    "$(a)", "`a`", "a'b", 'a"b', "a\\b", "a:b", "a\x1b[31m", "a\u202eb",
    "a\0b", "~", "~/a", "é", "a|b", "a&b", "a>b", "[a]", "{a}",
]  # fmt: skip
VALID = ["a", "0", "sevir-direct", "fold_1", "run-1e-3", "v0.1+cu128", "A.b", "x" * 100]
TRAIN = {"name": "a", "run_dir": "runs/a", "stage": "direct"}
PIPELINE = {"name": "p", "run_dir": "runs/p", "stages": {"teacher": {}}}


def _test_set(name: str) -> dict:
    return {**PIPELINE, "evaluation": {"also": [{"name": name, "data": {}}]}}


FIELDS = {
    "name": (TrainConfig, lambda name: {**TRAIN, "name": name}),
    "stages": (PipelineConfig, lambda name: {**PIPELINE, "stages": {name: {"stage": "teacher"}}}),
    "evaluation.also.0.name": (PipelineConfig, _test_set),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", INVALID)
def test_invalid_names_are_rejected_with_field_value_and_pattern(field, name):
    cls, data = FIELDS[field]
    with pytest.raises(ConfigError) as caught:
        from_mapping(cls, data(name))
    [line] = [line for line in str(caught.value).splitlines() if line.strip().startswith(field)]
    assert repr(name) in line and PATTERN in line


@pytest.mark.parametrize("field", FIELDS)
def test_valid_names_are_accepted(field):
    cls, data = FIELDS[field]
    for name in VALID if field != "stages" else VALID[:-1]:  # a stage's run has the pipeline's name too
        from_mapping(cls, data(name))


@pytest.mark.parametrize("name", ["", "../x", "a b", "*"])
def test_rows_of_evaluate_have_valid_names(name):
    with pytest.raises(ConfigError, match=re.escape(f"the row {name!r} is not a name: it must match {PATTERN}")):
        _parse_rows([f"{name}=persistence"])
    assert _parse_rows(["my.row=persistence"]) == [("my.row", "persistence", "baseline")]


@pytest.mark.parametrize(
    "event", ["../../x", "/abs", "", ".", "..", "a/b", "a\nb", "x" * 5000, "\ud800", "a\0", "é", "-a"]
)
def test_events_have_safe_and_different_file_names(event):
    stem = file_stem(event)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_+-]{0,99}", stem)
    assert stem != file_stem(event + "x") and stem == file_stem(event)


def test_events_with_plain_names_keep_them():
    assert file_stem("S728503") == "S728503" and file_stem("SE_20160828T1000") == "SE_20160828T1000"


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "a\nb", "a\x1b"])
def test_paths_of_a_description_stay_below_the_data_root(path):
    sevir = read_spec("sevir").model_dump(mode="json")
    hko7 = read_spec("hko7").model_dump(mode="json")
    for data in (
        sevir | {"folder": path},
        sevir | {"splits": {"kind": "table", "file": path}},
        sevir | {"splits": {"kind": "day_lists", "train": "a", "val": "b", "test": path}},
        hko7 | {"layout": {"kind": "hko7", "images": path}},
        hko7 | {"layout": {"kind": "hko7", "domain_file": path}},
    ):
        with pytest.raises(ConfigError, match="must be a relative path below the data root, without"):
            from_mapping(DatasetSpec, data)
    assert from_mapping(DatasetSpec, sevir | {"folder": "data/vil..old"}).folder == "data/vil..old"


class _Bucket:
    """A file system that lists these keys."""

    def __init__(self, *keys: str, **info: object):
        self.keys, self.entry = keys, {"size": 3, "ETag": '"abc"', **info}

    def find(self, _prefix: str, *, detail: bool) -> dict:
        return {key: self.entry for key in self.keys}

    def info(self, _key: str) -> dict:
        return {"size": 3, "ETag": '"abc"'}


@pytest.mark.parametrize(
    "key",
    [
        "sevir/data/vil/2018/../../../../x.h5", "sevir/data/vil/2018/..h5", "sevir/data/vil/../2018/x.h5",
        "/abs/2018/x.h5",
        "sevir/data/vil/2018/a\\b.h5", "sevir/data/vil/2018/a b.h5", "sevir/data/vil/2018/a\n.h5",
        "sevir/data/vil/20x8/a.h5",
        "sevir/data/vil/\u0662018/a.h5", "sevir/data/vil/2018/a/b.h5", "sevir/data/vil/2018/.h5",
        "sevir/data/vil2/2018/a.h5",
    ],
)  # fmt: skip
def test_keys_that_are_no_file_of_a_year_are_rejected(key):
    with pytest.raises(DownloadError, match=r"which is not sevir/data/vil/YEAR/NAME\.h5"):
        list_objects(_Bucket("sevir/data/vil/2018/a.h5", key), "sevir")


def test_keys_stay_below_the_root_and_differ_without_case(tmp_path):
    [_, remote] = list_objects(_Bucket("sevir/data/vil/2018/a.h5"), "sevir")
    assert local_path(remote, tmp_path) == tmp_path / "data/vil/2018/a.h5"
    with pytest.raises(DownloadError, match="differ only in case"):
        list_objects(_Bucket("sevir/data/vil/2018/a.h5", "sevir/data/vil/2018/A.h5"), "sevir")
    with pytest.raises(ConfigError, match=r"--image-type '\.\./vil' is not a name"):
        list_objects(_Bucket(), "sevir", image_type="../vil")


@pytest.mark.parametrize("info", [{"size": None}, {"size": -1}, {"size": "x"}, {"ETag": "a\n"}])
def test_invalid_sizes_and_etags_are_errors(info):
    with pytest.raises(DownloadError, match=r"the bucket lists .* with"):
        list_objects(_Bucket("sevir/data/vil/2018/a.h5", **info), "sevir")


@pytest.mark.parametrize("link", ["a.h5", ".a.h5.part", ".a.h5.etag", ".a.h5.part.etag"])
def test_a_download_does_not_write_through_links(tmp_path, link):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / link).symlink_to(victim)
    remote = RemoteObject("sevir/data/vil/2018/a.h5", 3, "0" * 32)
    with pytest.raises(DownloadError, match="is a symbolic link, which a download does not follow"):
        download_object(SimpleNamespace(), remote, tmp_path / "root" / "a.h5", retry=RetryPolicy(1), progress=print)
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("etag", ["0" * 32 + "-x", "0" * 32 + "-" + "9" * 5000, "0" * 32 + "-", "0" * 32 + "-\u0662"])
def test_an_etag_that_is_no_checksum_is_not_compared(tmp_path, etag):
    (tmp_path / "a").write_bytes(b"abc")
    assert matches_etag(tmp_path / "a", etag) in (None, False)
