"""The process that reads foreign files: what crashes, loops or allocates in it is an error of the file."""

import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from simcast_hpc.config import ConfigError, DataError
from simcast_hpc.radar import frame_times, read_frames, reader_process
from simcast_hpc.radar.frame_messages import InvalidMessageError, pack, unpack, unpack_prefix
from simcast_hpc.radar.reader_process import ReadingStopped
from tests.radar import hostile_readers
from tests.radar.hostile_readers import frame


@pytest.fixture(scope="module")
def hostile():
    """Replace the readers by misbehaving ones, with one second per file."""
    reader_process.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_process, "_COMMAND", hostile_readers.COMMAND)
        patch.setenv(reader_process.SECONDS_VARIABLE, "1")
        patch.setenv("PMI_RANK", "0")
        patch.setenv("OMPI_COMM_WORLD_RANK", "0")
        yield
    reader_process.close()


def child_pid() -> int:
    assert reader_process._process is not None
    return reader_process._process._child.pid


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash", "crashed with SIGSEGV"),
        ("abort", r"crashed with SIGABRT \(double free or corruption \(!prev\)\)"),
        ("leave", "exited with status 3"),
        ("loop", "used more CPU time|did not finish within 1 s"),
        ("sleep", "did not finish within 1 s"),
        ("allocate", "needs more than 4 GiB|Unable to allocate"),
        ("recurse", "RecursionError"),
        ("interrupt", "KeyError"),
        ("interject", "returned"),
    ],
)
def test_failure_of_a_reader_is_an_error_of_its_file(hostile, name, reason):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"^{name} cannot be read.*({reason})"):
        read_frames(Path(name))
    (good,) = read_frames(Path("good"))
    np.testing.assert_array_equal(good.values, np.arange(24, dtype=np.float32).reshape(4, 6))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_frames_and_times_arrive_unchanged(hostile):
    (got,), sent = read_frames(Path("good")), frame()
    np.testing.assert_array_equal(got.values, sent.values)
    for name in ("grid", "time", "start", "unit", "path", "metadata"):
        assert getattr(got, name) == getattr(sent, name) is not None, name
    assert got.values.flags.writeable and frame_times(Path("good")) == [sent.time]


def test_a_process_damaged_by_one_file_does_not_reject_the_next(hostile):
    read_frames(Path("good"))
    os.kill(child_pid(), signal.SIGKILL)
    assert len(read_frames(Path("good"))) == 1


def test_errors_keep_their_class_and_log_records_arrive(hostile, caplog):
    with pytest.raises(ConfigError, match=r"^a package is missing$"):
        read_frames(Path("reject"))
    with caplog.at_level(logging.WARNING):
        assert len(read_frames(Path("flood"))) == 1
    assert ("simcast_hpc.radar.test", logging.WARNING, "a record of the reader") in caplog.record_tuples
    assert "a warning of a library" in caplog.text


def test_answers_have_a_limit(hostile, monkeypatch):
    monkeypatch.setenv(reader_process.MEMORY_VARIABLE, "2")
    monkeypatch.setattr(reader_process._Process, "max_answer_bytes", 200)
    with pytest.raises(DataError, match="enlarge contains frames of 288 bytes; the limit is 200"):
        read_frames(Path("enlarge"))
    assert len(read_frames(Path("good"))) == 1


@pytest.mark.parametrize("text", ["much", "-1", "0", "nan", "inf"])
def test_rejects_invalid_limits(monkeypatch, text):
    monkeypatch.setenv(reader_process.MEMORY_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"SIMCAST_READER_MEMORY_GIB='{text}' is invalid"):
        read_frames(Path("good"))


def test_a_request_to_stop_ends_a_busy_reader_soon(hostile, monkeypatch):
    monkeypatch.setenv(reader_process.SECONDS_VARIABLE, "60")
    read_frames(Path("good"))
    begin = time.monotonic()
    with pytest.raises(ReadingStopped):
        read_frames(Path("sleep"), stop=lambda: True)
    assert time.monotonic() - begin < 5
    assert len(read_frames(Path("good"), stop=lambda: True)) == 1, "a file that takes no time is still read"


def test_signals_of_the_process_group_do_not_end_it(hostile):
    read_frames(Path("good"))
    pid = child_pid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    read_frames(Path("good"))
    assert child_pid() == pid


def test_ctrl_c_ends_the_reader_and_the_next_file_is_read(hostile, monkeypatch):
    monkeypatch.setenv(reader_process.SECONDS_VARIABLE, "60")
    read_frames(Path("good"))
    pid = child_pid()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            read_frames(Path("sleep"))
    finally:
        signal.signal(signal.SIGINT, previous)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert len(read_frames(Path("good"))) == 1


@pytest.mark.parametrize("name", ["good", "sleep"])
def test_it_ends_with_its_parent(name):
    program = f"""
        from pathlib import Path
        from simcast_hpc.radar import reader_process
        from simcast_hpc.radar.radar_frame import FieldChoice
        from tests.radar import hostile_readers
        reader_process._COMMAND = hostile_readers.COMMAND
        reader_process.read_frames(Path("good"), FieldChoice())
        print(reader_process._process._child.pid, flush=True)
        reader_process.read_frames(Path({name!r}), FieldChoice())
        input()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "the reader outlives its parent"
        time.sleep(0.05)


def test_a_forked_child_starts_its_own(hostile):
    read_frames(Path("good"))
    pid = child_pid()
    if (fork := os.fork()) == 0:
        os._exit(0 if reader_process._process is None and len(read_frames(Path("good"))) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert len(read_frames(Path("good"))) == 1 and child_pid() == pid


def test_it_imports_no_torch_and_gets_no_variables_of_mpi(hostile):
    read_frames(Path("good"))
    environment = Path(f"/proc/{child_pid()}/environ").read_bytes()
    assert b"PATH=" in environment and b"PMI_RANK" not in environment and b"OMPI_" not in environment
    maps = Path(f"/proc/{child_pid()}/maps").read_bytes()
    assert b"libhdf5" in maps and b"libtorch" not in maps


def parts(content: object) -> tuple[bytes, bytearray]:
    _, header, *arrays = pack(content)
    return bytes(header), bytearray(b"".join(arrays))


@pytest.mark.parametrize("seed", range(3))
def test_damaged_messages_are_rejected(seed):
    header, arrays = parts({"result": [frame()], "records": [["simcast_hpc", 30, "text"]]})
    rng, outcomes = np.random.default_rng(seed), set()
    for _ in range(400):
        damaged = bytearray(header)
        for position in rng.integers(len(damaged), size=rng.integers(1, 4)):
            damaged[position] = rng.choice(bytearray(b'0123456789[]{}",-e:n\x00\xff') if rng.random() < 0.7 else [32])
        try:
            unpack(bytes(damaged), bytearray(arrays))
            outcomes.add("read")
        except (InvalidMessageError, DataError) as error:
            outcomes.add(type(error).__name__)
    assert "InvalidMessageError" in outcomes


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b'{"array": ["<f4", [4, 1099511627776]]}', "an array of <f4"),
        (b'{"array": ["|O", [1]]}', "an array of"),
        (b'{"array": ["<f4", [-1]]}', "an array of"),
        (b'{"RadarFrame": {}}', "'values'"),
        (b"[" * 100_000, "malformed"),
        (b'{"module": 1}', "module"),
        (b"[]", "of which 0 are used"),
    ],
)
def test_messages_declare_no_more_than_they_contain(header, text):
    with pytest.raises(InvalidMessageError, match=text):
        unpack(header, bytearray(4))


def test_sizes_of_messages_have_limits():
    prefix = bytes(pack({"array": np.zeros(100)})[0])
    assert unpack_prefix(prefix, 800).arrays == 800
    for damaged, limit in ((prefix, 799), (b"XXXX" + prefix[4:], 800), (prefix[:4] + b"\xff" * 4 + prefix[8:], 800)):
        with pytest.raises(InvalidMessageError):
            unpack_prefix(damaged, limit)


def test_a_short_attempt_has_a_part_of_the_time(hostile, monkeypatch):
    monkeypatch.setenv(reader_process.SECONDS_VARIABLE, "30")
    monkeypatch.setattr(reader_process, "_SHORT_SECONDS", 0.0)
    monkeypatch.setattr(reader_process, "_SHORT_SHARE", 0.01)
    with pytest.raises(DataError, match=r"did not finish within 0\.3 s"):
        read_frames(Path("sleep"), short=True)
    with pytest.raises(DataError, match=r"did not finish within 0\.3 s"):
        frame_times(Path("sleep"), short=True)
