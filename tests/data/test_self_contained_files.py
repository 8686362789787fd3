"""HDF5 files and catalogs from elsewhere read nothing outside of their folder, and allocate no more than they store."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from simcast_hpc.config import DataError
from simcast_hpc.data import hdf5_guard
from simcast_hpc.data.hdf5_files import OpenFiles
from simcast_hpc.data.hdf5_guard import check_hdf5
from simcast_hpc.radar import frame_times, read_frames
from tests.archives import FILE, Row, make_archive, open_archive, random_codes, write_catalog
from tests.radar.radar_files import START, storm, write_cf, write_odim

SECRET = b"a secret of the user" * 1000


def link_outside(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/data")


def store_outside(file: h5py.File, name: str, secret: Path) -> None:
    shape = file[name].shape  # type: ignore[union-attr]
    del file[name]
    file.create_dataset(name, shape, "u1", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def view_outside(file: h5py.File, name: str, secret: Path) -> None:
    shape = file[name].shape  # type: ignore[union-attr]
    del file[name]
    layout = h5py.VirtualLayout(shape, "u1")
    layout[...] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "data", shape)
    file.create_virtual_dataset(name, layout)


OUTSIDE = pytest.mark.parametrize(
    ("change", "text"),
    [
        (link_outside, "is a link to another file"),
        (store_outside, "is stored in another file"),
        (view_outside, "is stored in another file"),
    ],
)


def changed(path: Path, name: str, change: Callable[[h5py.File, str, Path], None]) -> Path:
    secret = path.parent / "secret.bin"
    secret.write_bytes(SECRET)
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["data"] = np.zeros((40, 52), np.uint8)
    with h5py.File(path, "r+") as file:
        change(file, name, secret)
    return path


@OUTSIDE
@pytest.mark.parametrize("name", ["dataset1/data1/data", "dataset1/how/unused"])
def test_radar_files_read_no_other_file(tmp_path, change, text, name):
    path = write_odim(tmp_path / "a.h5", storm(0), START)
    with h5py.File(path, "r+") as file:
        file.require_dataset(name, (40, 52), "f8")
    path = changed(path, name, change)
    for read in (read_frames, frame_times):
        with pytest.raises(DataError, match=rf"a\.h5: /{name} {text}"):
            read(path)


@OUTSIDE
def test_archives_read_no_other_file(tmp_path, change, text):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    path = changed(root / "data" / FILE, "vil", change)
    with pytest.raises(DataError, match=rf"{FILE}: /vil {text}"):
        open_archive(root)
    with pytest.raises(DataError, match=f"/vil {text}"):
        OpenFiles().get(path)


def test_links_within_a_file_are_followed_and_cycles_end(tmp_path):
    path = write_odim(tmp_path / "a.h5", storm(0), START)
    with h5py.File(path, "r+") as file:
        file["dataset1/cycle"] = file["/"]
        file["dataset1/again"] = file["dataset1"]
        file.move("dataset1/data1/data", "stored")
        file["dataset1/data1/data"] = h5py.SoftLink("/stored")
        file["nowhere"] = h5py.SoftLink("/absent")
    (frame,) = read_frames(path)
    assert frame.values[20, 10] == 50.0


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (1 << 20, 1 << 20), "chunks": (64, 64), "compression": "gzip"},
        {"shape": (1 << 16, 1 << 16)},
        {"shape": (8, 8), "maxshape": (None, None), "chunks": (1 << 14, 1 << 15)},
    ],
)
def test_sizes_far_above_the_stored_bytes_are_rejected(tmp_path, options):
    path = write_odim(tmp_path / "a.h5", storm(0), START)
    with h5py.File(path, "r+") as file:
        del file["dataset1/data1/data"]
        file.create_dataset("dataset1/data1/data", dtype="u1", **options)
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match=r"a\.h5: /dataset1/data1/data declares \d+ bytes .* and stores \d+"):
        read_frames(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLASS", 1),
        ("CLASS", np.bytes_(["DIMENSION_SCALE"] * 9)),
        ("DIMENSION_LIST", np.zeros(1000, np.uint8)),
        ("REFERENCE_LIST", np.bytes_("a")),
        ("REFERENCE_LIST", np.zeros(1, [("a", "f8"), ("b", "i4")])),
        ("DIMENSION_LABELS", 2.5),
    ],
)
def test_attributes_that_corrupt_the_memory_of_hdf5_are_rejected(tmp_path, name, value):
    path = write_cf(tmp_path / "a.nc", np.ones((1, 4, 6), np.float32), [START])
    assert len(read_frames(path)) == 1
    with h5py.File(path, "r+") as file:
        file["field"].attrs[name] = value
    with pytest.raises(DataError, match=rf"/field has an attribute {name} of the wrong type or size"):
        read_frames(path)


def test_a_large_field_without_echo_is_plausible(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("empty", data=np.zeros((9000, 9000), np.uint8), chunks=(1000, 1000), compression="gzip")
        assert file["empty"].id.get_storage_size() < 100_000  # type: ignore[union-attr]
        check_hdf5(file, tmp_path / "a.h5")


def test_the_number_of_objects_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_guard, "MAX_OBJECTS", 20)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(20):
            file.create_group(f"group{number}")
        check_hdf5(file, tmp_path / "a.h5")
        file.create_group("group20")
        with pytest.raises(DataError, match="more than 20 objects"):
            check_hdf5(file, tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["../secret.h5", "a/../../secret.h5", "/etc/passwd", "", ".", "a\x00b", "a\nb"])
def test_names_in_a_catalog_are_below_the_archive(tmp_path, name):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    write_catalog(root, [Row("E000", 0, name)])
    with pytest.raises(DataError, match=r"line (2|\d), event E000: file_name=.* must be relative|NUL"):
        open_archive(root)


def test_symbolic_links_do_not_leave_an_archive(tmp_path):
    root = make_archive(tmp_path / "archive", random_codes(1, 5))
    (root / "data" / FILE).rename(tmp_path / "elsewhere.h5")
    (root / "data" / FILE).symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(DataError, match=r"is a symbolic link to .*elsewhere\.h5, outside of the archive"):
        open_archive(root)
    (root / "data" / FILE).unlink()
    (tmp_path / "elsewhere.h5").rename(root / "inside.h5")
    (root / "data" / FILE).symlink_to(root / "inside.h5")
    (tmp_path / "linked").symlink_to(root)
    assert len(open_archive(tmp_path / "linked")) == len(open_archive(root)) > 0
