"""Atomic files: old content or new, hidden while written, flushed before they are visible, permissions of the umask."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from simcast_hpc.storage import atomic_files
from simcast_hpc.storage.atomic_files import (
    atomic_directory,
    atomic_file,
    remove,
    sweep,
    write_json,
    write_tensors,
    write_text,
)


def _fail(*_arguments, **_named):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(failing if failing == "os.fsync" else "pathlib.Path.replace", _fail)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1} and list(tmp_path.iterdir()) == [path]
    write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 2} and list(tmp_path.iterdir()) == [path]


def test_an_exception_in_the_block_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("part")
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "b") as temporary:
        (temporary / "part").mkdir()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_use_two_temporary_files_that_no_pattern_by_type_matches(tmp_path):
    path = tmp_path / "scores.json"
    with atomic_file(path) as one, atomic_file(path) as other:
        assert one != other and one.name.startswith(".scores.json.") and str(os.getpid()) in one.name
        assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob("scores*"))
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one", "the file that is renamed last"


def test_content_is_flushed_before_it_is_renamed_and_the_directory_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, type(tmp_path).replace

    def record(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}").rsplit("/", 1)[-1].split(".node")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(atomic_files.socket, "gethostname", lambda: "node")
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: calls.append("rename") or replace(self, to))
    write_text(tmp_path / "a", "text")
    assert calls == [".a", "rename", tmp_path.name]
    calls.clear()
    with atomic_directory(tmp_path / "b") as temporary:
        (temporary / "c").mkdir()
        (temporary / "c" / "d").write_text("text")
    assert calls == ["c", "d", ".b", "rename", tmp_path.name]


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "model.safetensors", {"weight": torch.ones(2, 3).T}, {"scale": "2.0"})
        with atomic_directory(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750
    assert load_file(tmp_path / "model.safetensors")["weight"].shape == (3, 2)


def test_a_directory_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "store"
    for text in ("old", "new"):
        with atomic_directory(path, replace=True) as temporary:
            (temporary / "a").write_text(text)
    assert (path / "a").read_text() == "new"
    with pytest.raises(OSError, match="not empty"), atomic_directory(path) as temporary:
        (temporary / "a").write_text("third")
    assert (path / "a").read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_sweep_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    for name in (".a.node7-4711-0.partial", ".b.node7-4711-1.partial"):
        (tmp_path / name).touch()
    (tmp_path / ".b.node7-4711-2.removed").mkdir()
    kept = [tmp_path / name for name in (".hidden", "a", "x.partial")]
    for path in kept:
        path.touch()
    sweep(tmp_path, "a")
    assert len(list(tmp_path.iterdir())) == 5
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == kept
    for path in (*kept, tmp_path / "absent"):
        remove(path)
    assert list(tmp_path.iterdir()) == []


def test_links_are_neither_followed_nor_kept(tmp_path, monkeypatch):
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("untouched")
    folder.mkdir()
    (folder / "kept").touch()
    path = tmp_path / "out" / "health.json"
    path.parent.mkdir()
    # 1. A link at the final name is replaced
    path.symlink_to(secret)
    write_text(path, "new")
    assert (path.read_text(), path.is_symlink(), secret.read_text()) == ("new", False, "untouched")
    # 2. A link at the hidden name, which cannot be foreseen, is an error
    with atomic_file(path) as one, atomic_file(path) as other:
        assert one.name.rsplit("-", 1)[0] == other.name.rsplit("-", 1)[0] and one != other
    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.secrets, "token_hex", lambda _count: "0")
        planted = atomic_files.temporary_path(path)
        planted.symlink_to(secret)
        with pytest.raises(FileExistsError):
            write_text(path, "newer")
    # 3. A file that is replaced by a link while it is written
    with pytest.raises(OSError), atomic_file(path) as temporary:  # ELOOP
        temporary.unlink()
        temporary.symlink_to(secret)
    assert (path.read_text(), secret.read_text()) == ("", "untouched")
    # 4. Links to directories are removed, their targets are not
    (path.parent / ".b.node7-4711-2.partial").symlink_to(folder)
    sweep(path.parent)
    path.unlink()
    path.symlink_to(folder)
    remove(path)
    assert list(path.parent.iterdir()) == [] and list(folder.iterdir()) == [folder / "kept"]
