"""Version and commit of an installation, and the citation file."""

import subprocess

import yaml

from simcast_hpc.version import __version__, describe_commit
from tests.packaging.conftest import ROOT


def commit_in(folder):
    git = ["git", "-C", str(folder), "-c", "user.name=User", "-c", "user.email=user@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "A commit"], check=True)
    return subprocess.run([*git, "describe", "--always"], check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_a_repository_around_the_installation_is_not_recorded(tmp_path):
    installation = tmp_path / "venv" / "lib" / "site-packages"
    installation.mkdir(parents=True)
    (installation / "pyproject.toml").touch()
    commit_in(tmp_path)
    assert describe_commit(installation) == "unknown"
    assert describe_commit(tmp_path) == "unknown", "a repository of another project"


def test_commit_of_a_checkout_is_recorded(tmp_path):
    (tmp_path / "simcast_hpc").mkdir()
    for name in ("pyproject.toml", "setup.py", "simcast_hpc/version.py"):
        (tmp_path / name).touch()
    commit = commit_in(tmp_path)
    assert describe_commit(tmp_path) == commit
    (tmp_path / "setup.py").write_text("# changed\n")
    assert describe_commit(tmp_path) == f"{commit}-dirty"


def test_commit_of_another_repository_is_not_recorded_for_a_checkout(tmp_path, monkeypatch):
    """Git finds another one by the variables of a hook, and above a checkout whose ``.git`` is damaged."""
    checkout = tmp_path / "checkout"
    (checkout / "simcast_hpc").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "simcast_hpc/version.py"):
        (checkout / name).touch()
    (checkout / ".git").mkdir()
    other = commit_in(tmp_path)
    assert other and describe_commit(checkout) == "unknown"
    (checkout / ".git").rmdir()
    commit = commit_in(checkout)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert describe_commit(checkout) == commit != other


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert [author["name"] for author in citation["authors"]] == ["SimCast-HPC developers"]
