"""Folders that another user prepared are rejected: owner, mode, links, and paths that others can replace.

Another user is simulated by the user number that this process believes to have, or by ``chown`` as root.
"""

import os
from pathlib import Path

import pytest

from simcast_hpc.storage import private_folders
from simcast_hpc.storage.compile_caches import check_caches, kernels_folder
from simcast_hpc.storage.private_folders import (
    UntrustedFolderError,
    check_path,
    check_private,
    claim_private,
    make_private,
    user_folder,
)

STRANGER = 4242


@pytest.fixture
def shared(tmp_path) -> Path:
    """A folder like ``/tmp``."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def give_away(monkeypatch):
    """Return a function after whose call a path belongs to another user."""
    strangers: list[str] = []
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        status = real(path)
        if str(path) in strangers:
            fields = list(status)
            fields[4] = STRANGER
            return os.stat_result(fields)
        return status

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
        else:
            monkeypatch.setattr(Path, "lstat", lstat)
            strangers.append(str(path))

    return give


def test_creates_a_private_folder_whatever_the_umask(shared):
    before = os.umask(0)
    try:
        make_private(shared / "a" / "b")
    finally:
        os.umask(before)
    assert [(shared / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700, 0o700]
    make_private(shared / "a" / "b")


def test_rejects_a_folder_of_another_user(shared, give_away):
    (shared / "cache").mkdir(mode=0o755)
    give_away(shared / "cache")
    with pytest.raises(UntrustedFolderError, match=r"shared/cache belongs to user 4242; use a folder that belongs to"):
        check_private(shared / "cache")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_rejects_a_folder_that_all_users_can_write(shared, mode):
    (shared / "cache").mkdir()
    (shared / "cache").chmod(mode)
    with pytest.raises(
        UntrustedFolderError, match=rf"shared/cache has mode {mode:04o}, so other users can write to it"
    ):
        check_private(shared / "cache")


def test_rejects_a_folder_that_a_group_can_write_unless_it_is_the_users_own(shared, monkeypatch):
    (shared / "cache").mkdir()
    (shared / "cache").chmod(0o770)
    monkeypatch.setattr(private_folders, "_is_own_group", lambda gid: False)
    with pytest.raises(UntrustedFolderError, match="has mode 0770"):
        check_private(shared / "cache")
    monkeypatch.setattr(private_folders, "_is_own_group", lambda gid: gid == (shared / "cache").stat().st_gid)
    check_private(shared / "cache")


def test_rejects_links_and_files(shared, tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    (shared / "link").symlink_to(tmp_path / "own")
    (shared / "dangling").symlink_to(tmp_path / "absent")
    (shared / "file").touch()
    for name, kind in (("link", "a symbolic link"), ("dangling", "a symbolic link"), ("file", "no folder")):
        with pytest.raises(UntrustedFolderError, match=rf"shared/{name} is {kind}"):
            make_private(shared / name)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_rejects_a_path_through_what_another_user_placed_in_a_shared_folder(shared, tmp_path, give_away, kind):
    inside = shared / "theirs" / "cache"
    if kind == "folder":
        inside.parent.mkdir()
    else:
        (tmp_path / "target").mkdir()
        inside.parent.symlink_to(tmp_path / "target")
    inside.mkdir(mode=0o700)
    check_private(inside)
    give_away(inside.parent)
    with pytest.raises(UntrustedFolderError, match=r"shared/theirs belongs to user 4242, in a folder to which every"):
        check_private(inside)


def test_rejects_a_shared_parent_without_sticky_bit(shared):
    (shared / "cache").mkdir(mode=0o700)
    check_private(shared / "cache")
    shared.chmod(0o777)
    with pytest.raises(UntrustedFolderError, match=r"cache can be replaced by any user: .*shared has mode 0777"):
        check_path(shared / "cache")


def test_every_user_has_a_folder_on_a_shared_disk(shared, tmp_path, give_away):
    own = f"simcast-{os.geteuid()}"
    assert user_folder(shared) == shared / own
    assert user_folder(shared / "absent" / "deep") == shared / own, "the first user must not create it for others"
    assert user_folder(tmp_path / "absent") == tmp_path / "absent" / own
    (shared / "stage").mkdir()
    assert user_folder(shared / "stage") == shared / "stage" / own
    give_away(shared / "stage")
    assert user_folder(shared / "stage") == shared / own, "another user made it"


def test_planted_caches_are_rejected_before_a_compilation(shared, give_away):
    variables = {
        "TORCH_EXTENSIONS_DIR": str(shared / "job" / "ext"),
        "TRITON_CACHE_DIR": str(shared / "job" / "triton"),
    }
    check_caches(variables, kernels=True)
    assert [(shared / name).stat().st_mode & 0o777 for name in ("job", "job/ext")] == [0o700, 0o700]
    give_away(shared / "job")
    with pytest.raises(
        UntrustedFolderError, match=r"TORCH_EXTENSIONS_DIR, a cache of compiled code: .*shared/job belo"
    ):
        check_caches(variables, kernels=True)
    with pytest.raises(UntrustedFolderError, match=r"TRITON_CACHE_DIR.* set SIMCAST_SHARED_CACHES=1 if you trust"):
        check_caches(variables | {"TORCH_EXTENSIONS_DIR": str(shared / "ext")}, kernels=True)
    check_caches(variables | {"SIMCAST_SHARED_CACHES": "1"}, kernels=True)


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "PYTORCH_KERNEL_CACHE_PATH", "CUDA_CACHE_PATH"])
def test_other_caches_of_the_environment_are_checked(shared, tmp_path, name):
    (shared / "cache").mkdir()
    (shared / "cache").chmod(0o777)
    with pytest.raises(UntrustedFolderError, match=name):
        check_caches({"TORCH_EXTENSIONS_DIR": str(tmp_path / "ext"), name: str(shared / "cache")}, kernels=False)


def test_a_missing_cache_is_created_only_where_others_could_create_it(shared, tmp_path, give_away):
    check_caches({"TORCH_EXTENSIONS_DIR": str(tmp_path / "a" / "b"), "TRITON_HOME": str(tmp_path)}, kernels=True)
    assert not (tmp_path / "a").exists() and not (tmp_path / ".triton").exists()
    (shared / "theirs").mkdir()
    give_away(shared / "theirs")
    with pytest.raises(UntrustedFolderError, match="shared/theirs belongs to user 4242"):
        check_caches({"TORCH_EXTENSIONS_DIR": str(shared / "theirs" / "ext")}, kernels=False)


def test_caches_of_triton():
    assert kernels_folder({"TRITON_HOME": "/h"}) == Path("/h/.triton/cache")
    assert kernels_folder({"TRITON_HOME": "/h", "TRITON_CACHE_DIR": "/c"}) == Path("/c")


def test_rejects_a_parent_that_belongs_to_another_user(tmp_path, give_away):
    theirs = tmp_path / "theirs"
    inside = theirs / "mine"
    inside.mkdir(parents=True, mode=0o700)
    check_private(inside)
    give_away(theirs)
    for check, path in ((check_private, inside), (claim_private, inside), (claim_private, theirs / "new")):
        with pytest.raises(UntrustedFolderError, match=r"can be replaced by user 4242, to whom .*theirs belongs"):
            check(path)
    assert not user_folder(theirs).is_relative_to(theirs) and not user_folder(theirs / "x").is_relative_to(theirs)


def test_checks_every_step_of_a_chain_of_links(tmp_path, give_away):
    """Link -> link in a folder of another user -> own folder: the middle link can be changed at any time."""
    (tmp_path / "good").mkdir(mode=0o700)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "second").symlink_to("..")  # relative
    (tmp_path / "first").symlink_to(tmp_path / "theirs" / "second")
    check_private(tmp_path / "first" / "good")
    give_away(tmp_path / "theirs")
    with pytest.raises(UntrustedFolderError, match="can be replaced by user 4242"):
        check_private(tmp_path / "first" / "good")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UntrustedFolderError, match="loop of symbolic links"):
        check_path(tmp_path / "loop" / "x")
