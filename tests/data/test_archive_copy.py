"""Copies of archives on a local disk: verified, private, repeated after a change, and never a planted one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data import archive_copy
from simcast_hpc.data.archive_copy import copy_folder, copy_path, main


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "from"
    (folder / "data").mkdir(parents=True)
    (folder / "CATALOG.csv").write_text("id\n")
    (folder / "data" / "a.h5").write_bytes(b"storm" * 1000)
    return folder


@pytest.fixture
def disk(tmp_path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".copied"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_copies_once_and_again_after_a_change(source, disk):
    target = copy_path(source, disk)
    assert target.parent == disk / f"simcast-{os.geteuid()}"
    assert copy_folder(source, target) and not copy_folder(source, target)
    assert contents(target) == {"CATALOG.csv": b"id\n", "data/a.h5": b"storm" * 1000}
    assert target.parent.stat().st_mode & 0o777 == 0o700
    (source / "data" / "b.h5").write_bytes(b"new")
    (source / "data" / "a.h5").unlink()
    assert copy_folder(source, target)
    assert contents(target) == {"CATALOG.csv": b"id\n", "data/b.h5": b"new"}, "no file of the old copy remains"


def test_repeats_a_copy_from_which_a_cleaner_removed_a_file(source, disk):
    copy_folder(source, target := copy_path(source, disk))
    (target / "data" / "a.h5").unlink()
    assert copy_folder(source, target)
    assert contents(target) == contents(source)


def test_repeats_a_copy_with_a_link_in_place_of_a_file(source, disk, tmp_path):
    copy_folder(source, target := copy_path(source, disk))
    (tmp_path / "other").write_bytes(b"other" * 1000)
    (target / "data" / "a.h5").unlink()
    (target / "data" / "a.h5").symlink_to(tmp_path / "other")
    assert copy_folder(source, target)
    assert contents(target) == contents(source) and (tmp_path / "other").read_bytes() == b"other" * 1000


def test_repeats_an_interrupted_copy(source, disk, monkeypatch):
    target = copy_path(source, disk)
    with monkeypatch.context() as patch:
        patch.setattr(archive_copy, "_copy_file", lambda read, into: into.write_bytes(b"half") and "0" * 64)
        with pytest.raises(DataError, match=r"the copy .* differs from .*; check the disk"):
            copy_folder(source, target)
    assert not target.exists()
    assert copy_folder(source, target) and contents(target) == contents(source)


def test_a_planted_copy_is_neither_used_nor_written_to(source, disk, tmp_path):
    """Another user prepared the folder, with a marker or as a link, before the first job of this user."""
    copy_folder(source, target := copy_path(source, disk))
    planted = disk / "planted"
    shutil.copytree(target.parent, planted)
    shutil.rmtree(target.parent)
    planted.rename(target.parent)
    (target / "data" / "a.h5").write_bytes(b"plant" * 1000)
    target.parent.chmod(0o777)
    with pytest.raises(DataError, match=r"simcast-\d+ has mode 0777, so other users can write to it"):
        copy_folder(source, target)
    shutil.rmtree(target.parent)
    (tmp_path / "elsewhere").mkdir()
    target.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"simcast-\d+ is a symbolic link"):
        copy_folder(source, target)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner requires root")
def test_a_folder_of_another_user_is_rejected(source, disk):
    target = copy_path(source, disk)
    target.parent.mkdir(mode=0o755)
    os.chown(target.parent, 4242, 4242)
    with pytest.raises(DataError, match=r"simcast-0 belongs to user 4242"):
        copy_folder(source, target)


def test_links_in_the_archive_are_followed(source, disk, tmp_path):
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "c.h5").write_bytes(b"linked")
    (source / "more").symlink_to(tmp_path / "storage")
    (source / "loop").symlink_to(source)
    copy_folder(source, target := copy_path(source, disk))
    assert contents(target)["more/c.h5"] == b"linked" and not (target / "more").is_symlink()


def test_rejects_a_disk_that_is_too_small_and_an_empty_source(source, disk, tmp_path, monkeypatch):
    usage = shutil.disk_usage(disk)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"simcast-\d+ has 0 MiB free, 0 MiB required; .* unset LOCAL_DATA"):
        copy_folder(source, copy_path(source, disk))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty contains no file to copy"):
        copy_folder(tmp_path / "empty", copy_path(tmp_path / "empty", disk))


def test_command_line(source, disk, tmp_path, capsys):
    line = [sys.executable, "-m", "simcast_hpc.data.archive_copy", "where", str(source), str(disk)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == f"{copy_path(source, disk)}\n"
    assert main(["copy", str(source), done.stdout.strip()]) == 0
    assert main(["copy", str(source), done.stdout.strip()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "is a new copy of" in lines[0] and "already is a copy of" in lines[1]
    assert main(["copy", str(tmp_path / "absent"), done.stdout.strip()]) == 2
    assert "absent cannot be copied to" in capsys.readouterr().err
