"""Readers that misbehave as native libraries do on damaged files; the file's name selects how."""

import ctypes
import logging
import os
import sys
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from simcast_hpc.config import ConfigError
from simcast_hpc.radar import RadarFrame, RadarGrid, read_frame, reader_process
from simcast_hpc.radar.radar_frame import FieldChoice

GRID = RadarGrid("+proj=longlat", 0.0, 60.0, 1000.0, 1000.0, 4, 6)
START = datetime(2024, 11, 26, 1, 0, tzinfo=UTC)
# The reader process with these readers instead of those of the program.
COMMAND = reader_process._COMMAND.replace("serve(", "import tests.radar.hostile_readers as own; own.install(); serve(")


def crash():
    ctypes.string_at(0)


def abort():
    os.write(2, b"double free or corruption (!prev)\n")
    os.abort()


def leave():
    os._exit(3)


def loop():
    while True:
        pass


def sleep():
    time.sleep(600)


def allocate():
    return np.ones(1 << 40, np.uint8)


def recurse(depth: int = 0):
    return recurse(depth + 1) + 1


def interrupt():
    raise KeyError("group")


def reject():
    raise ConfigError("a package is missing")


def interject():
    descriptor = int(sys.argv[1].split(",")[0].strip("["))
    os.write(descriptor, b"\x80\x04cposix\nsystem\n" * 10)


def flood():
    print("x" * (1 << 20))
    logging.getLogger("simcast_hpc.radar.test").warning("a record of the reader")
    warnings.warn("a warning of a library", stacklevel=1)


def enlarge():
    return [replace(frame(), time=START + timedelta(minutes=number)) for number in range(3)]


def frame(values: np.ndarray | None = None) -> RadarFrame:
    field = np.arange(24, dtype=np.float32).reshape(4, 6) if values is None else values
    metadata = {"quantity": "RATE", "minutes": 5.0, "levels": (1, [2.5])}
    return RadarFrame(field, "mm/h", START, GRID, Path("a"), metadata, START - timedelta(minutes=5))


def install() -> None:
    """Replace the detection of formats in this process."""

    def frames(path: Path, _choice: FieldChoice) -> list[RadarFrame]:
        action = globals().get(path.name)
        return (action() if action else None) or [frame()]

    def detect(_path: Path) -> read_frame.Format:
        return read_frame.Format("test", lambda path, choice: [one.time for one in frames(path, choice)], frames, ())

    read_frame.detect_format = detect
