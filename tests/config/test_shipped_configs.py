"""Names of shipped configurations: resolution to files, precedence of existing files, listing and copying."""

from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, TrainConfig, copy_config, list_configs, read_config, resolve
from simcast_hpc.config import shipped_configs as shipped

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["teacher/sevir", "teacher/sevir.yaml", Path("teacher/sevir")])
def test_resolves_name_with_or_without_suffix(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(name) == CONFIGS / "teacher" / "sevir.yaml"
    assert read_config(TrainConfig, name).name == "sevir-teacher"


def test_existing_file_takes_precedence_and_run_directory_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher" / "sevir").mkdir(parents=True)
    assert resolve("teacher/sevir") == CONFIGS / "teacher" / "sevir.yaml"
    (tmp_path / "teacher" / "sevir.yaml").write_text("name: mine\n", encoding="utf-8")
    assert resolve("teacher/sevir.yaml") == Path("teacher/sevir.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("techer/sevir", "did you mean teacher/sevir"),
        ("zzzzzzzzzzz", "`simcast config list` lists the names"),
        (".", "is a folder"),
    ],
)
def test_rejects_unknown_name_with_nearest_names(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name)


def test_lists_every_file(tmp_path):
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in CONFIGS.rglob("*.yaml")}
    assert list_configs() == files


def test_installed_package_data_is_used_before_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "simcast_hpc"
    monkeypatch.setattr(shipped.resources, "files", lambda name: package)
    checkout = tmp_path / "site-packages" / "configs" / "teacher"
    checkout.mkdir(parents=True)
    (checkout / "a.yaml").write_text("# A\n", encoding="utf-8")
    assert list(list_configs()) == ["teacher/a"]
    (package / "configs" / "direct").mkdir(parents=True)
    (package / "configs" / "direct" / "b.yaml").write_text("# B\n", encoding="utf-8")
    assert list_configs() == {"direct/b": package / "configs" / "direct" / "b.yaml"}


def test_copies_to_a_new_file_only(tmp_path):
    target = tmp_path / "mine.yaml"
    copy_config("teacher/sevir", target)
    assert target.read_bytes() == (CONFIGS / "teacher" / "sevir.yaml").read_bytes()
    with pytest.raises(ConfigError, match="exists; give another target"):
        copy_config("direct/sevir", target)
    assert target.read_bytes() == (CONFIGS / "teacher" / "sevir.yaml").read_bytes()
