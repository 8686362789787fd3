"""Coverage-guided fuzz target of one radar reader (atheris, libFuzzer).

Every input must end in frames or in one of our errors. An input of an HDF5 reader that does not begin like an HDF5 file
is a recipe: it changes the attributes and datasets of a valid file. ``run_fuzz.py`` starts this program.
"""

import logging
import resource
import sys
import warnings
from pathlib import Path

from tests.fuzz.mutations import restructured
from tests.fuzz.valid_files import HDF5_READERS, names_of_store, place, write_valid_files

MEMORY_BYTES = 4 << 30  # as in the reader process
_HDF5 = b"\x89HDF\r\n\x1a\n"
_RECIPES = tuple(bytes(range(start, start + 40, 3)) for start in range(0, 200, 25))


class Target:
    """Reads inputs as the reader process does, without the process."""

    def __init__(self, reader: str, folder: Path):
        self.reader = reader
        self.valid = write_valid_files(reader, folder)
        self._names = names_of_store(folder)
        self._path, self.last = folder / "input", folder / "last"

    def seeds(self) -> list[bytes]:
        """Return the inputs from which fuzzing starts."""
        return self.valid + (list(_RECIPES) if self.reader in HDF5_READERS else [])

    def write(self, data: bytes) -> Path:
        """Write the file of an input and return its path."""
        if self.reader in HDF5_READERS and data and not data.startswith(_HDF5[:4]):
            data = restructured(self.valid[data[0] % len(self.valid)], data[1:])
        return place(self.reader, data, self._path, self._names)

    def __call__(self, data: bytes) -> None:
        """Read an input.

        Raises:
            Exception: anything that is not one of our errors.
        """
        from simcast_hpc.config import ConfigError, DataError
        from simcast_hpc.radar.frame_messages import pack
        from simcast_hpc.radar.radar_frame import FieldChoice
        from simcast_hpc.radar.read_frame import frame_times_in_process, read_frames_in_process

        self.last.write_bytes(data)  # remains if a corrupted heap ends the process without a trace
        path = self.write(data)
        for read in (frame_times_in_process, read_frames_in_process):
            try:
                result = read(path, FieldChoice())
            except (DataError, ConfigError, MemoryError):
                continue
            if not isinstance(result, list) or not result:
                raise TypeError(f"the reader returned {result!r}")
            pack(result)


def main() -> None:
    """Run libFuzzer; arguments after the reader and an empty folder are those of libFuzzer, the last is the corpus."""
    import atheris

    reader, folder = sys.argv.pop(1), Path(sys.argv.pop(1))
    with atheris.instrument_imports(include=["simcast_hpc.radar", "simcast_hpc.data.hdf5_guard"]):
        import simcast_hpc.radar.read_frame  # noqa: F401
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for kind, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (value, value))
    target = Target(reader, folder)
    for number, seed in enumerate(target.seeds()):
        Path(sys.argv[-1], f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
