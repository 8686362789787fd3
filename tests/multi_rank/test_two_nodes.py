"""Two nodes of one rank each give the losses of one node of two: torchrun, deepspeed, mpiexec, with and without ssh."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multi_rank.runs import BIN, environment, losses, overrides, simcast, weights
from tests.multi_rank.two_nodes import NODES, TwoNodes, missing
from tests.system_programs import program

pytestmark = pytest.mark.multi
_TIMEOUT_SECONDS = 240
_PORT = 29555  # free in namespaces that are this test's own


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[TwoNodes]:
    """Return two nodes that share only the disk."""
    if reason := missing():
        pytest.skip(reason)
    program("ip", package="iproute2")
    folder = tmp_path / "nodes"
    folder.mkdir()
    with TwoNodes(folder) as both:
        yield both


@pytest.fixture(scope="module")
def one_node(teacher_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks on one node."""
    run_dir = tmp_path_factory.mktemp("one-node") / "run"
    simcast("torchrun", 2, ["train", str(teacher_config), *overrides(run_dir=run_dir)])
    return run_dir


def _run(commands: list[list[str]], variables: dict[str, str]) -> None:
    """Run command lines concurrently and wait for all."""
    started = [
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=_TIMEOUT_SECONDS)[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    assert not any(process.returncode for process in started), "\n".join(text[-4000:] for text in outputs)


def _agrees(run_dir: Path, one_node: Path) -> None:
    """World size and ranks are the same, so losses are bitwise equal."""
    assert losses(run_dir) == losses(one_node)
    assert all((tensor == weights(one_node)[name]).all() for name, tensor in weights(run_dir).items())


def _torchrun(node: int) -> list[str]:
    return [str(BIN / "torchrun"), "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1",
            "--master-addr", NODES[0], "--master-port", str(_PORT), "-m", "simcast_hpc"]  # fmt: skip


def test_torchrun_on_two_nodes_agrees_with_one_rank(nodes, teacher_config, one_rank, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", str(teacher_config), *overrides(run_dir=run_dir)]
    _run([nodes.on(node, [*_torchrun(node), *arguments]) for node in range(2)], environment())
    assert losses(run_dir) == pytest.approx(losses(one_rank), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launcher_started_on_each_node_trains_as_one_node(launcher, nodes, teacher_config, one_node, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", str(teacher_config), *overrides(run_dir=run_dir)]
    commands = []
    for node in range(2):
        without_ssh = [
            str(BIN / "deepspeed"), "--hostfile", str(nodes.hostfile), "--no_ssh", "--node_rank", str(node),
            "--master_addr", NODES[0], "--master_port", str(_PORT), "--module", "simcast_hpc",
        ]  # fmt: skip
        commands.append(nodes.on(node, [*(_torchrun(node) if launcher == "torchrun" else without_ssh), *arguments]))
    _run(commands, environment())
    _agrees(run_dir, one_node)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "mpiexec"])
def test_a_launcher_that_reaches_the_other_node_by_ssh_trains_as_one_node(
    launcher, nodes, teacher_config, one_node, tmp_path
):
    """DeepSpeed by its MPICH launcher: its default, pdsh, ends what it started by the name of the program.

    0.19.8's MPICH launcher cannot take ``--module``, so the program is named by its path.
    """
    run_dir = tmp_path / "run"
    arguments = ["train", str(teacher_config), *overrides(run_dir=run_dir)]
    reaching = nodes.serve_ssh()
    by_ssh = {
        "deepspeed": [
            str(BIN / "deepspeed"), "--hostfile", str(nodes.hostfile), "--launcher", "mpich",
            "--launcher_args=-launcher ssh", "--master_port", str(_PORT), str(BIN / "simcast"),
        ],
        "mpiexec": [str(BIN / "mpiexec"), "-launcher", "ssh", "-hosts", ",".join(f"{node}:1" for node in NODES),
                    str(BIN / "python"), "-m", "simcast_hpc"],
    }  # fmt: skip
    _run([nodes.on(0, [*by_ssh[launcher], *arguments])], reaching)
    _agrees(run_dir, one_node)
