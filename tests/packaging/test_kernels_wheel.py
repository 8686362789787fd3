"""The distribution simcast-kernels on its own, and installed next to simcast-hpc (`make test-ci`)."""

import json
import zipfile

import pytest

from simcast_hpc.version import __version__
from tests.packaging.conftest import create_environment
from tests.packaging.test_wheel import metadata

pytestmark = pytest.mark.ci

# Hide every module of a distribution that simcast-kernels does not require, directly or indirectly.
_ISOLATED = """
import importlib.machinery, importlib.metadata, importlib.util, re, sys

def closure(name, visited):
    name = re.sub("[-_.]+", "-", name).lower()
    if name in visited:
        return visited
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return visited
    visited.add(name)
    for line in lines:
        if "extra ==" not in line:
            closure(re.match("[A-Za-z0-9._-]+", line)[0], visited)
    return visited

needed = closure("simcast-kernels", set())
assert "torch" in needed and "deepspeed" not in needed and "numpy" not in needed, needed
owners = importlib.metadata.packages_distributions()
class RequiredOnly(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        names = {re.sub("[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], ())}
        return None if names and not names & needed else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = RequiredOnly

import simcast_kernels as sk
assert "torch" not in sys.modules
import torch
prediction = torch.zeros(1, 1, 1, 2, 2, requires_grad=True)
target = torch.tensor([0, 100, 220, 255], dtype=torch.uint8).view(1, 1, 1, 2, 2)
loss = sk.weighted_mse(prediction, target, thresholds=(219,), weights=(1, 10))
loss.sum().backward()
assert torch.isfinite(prediction.grad).all() and prediction.grad.any()
assert importlib.util.find_spec("deepspeed") is None and importlib.util.find_spec("numpy") is None
print(sk.__version__, sk.__file__)
"""


def test_requires_only_torch_and_triton(kernels_wheel):
    fields = metadata(kernels_wheel)
    assert (fields["Name"], fields["Version"]) == ("simcast-kernels", __version__)
    required = [line.split("<")[0].split(">")[0].split("=")[0].strip() for line in fields.get_all("Requires-Dist", [])]
    assert sorted(required) == ["torch", "triton"]
    with zipfile.ZipFile(kernels_wheel) as file:
        assert {name.partition("/")[0].partition("-")[0] for name in file.namelist()} <= {"simcast_kernels"}


def test_runs_without_simcast_hpc(kernels_wheel, tmp_path):
    environment = create_environment(tmp_path / "venv").install(kernels_wheel)
    version, path = environment.run("python", "-c", _ISOLATED, cwd=tmp_path).stdout.split()
    assert version == __version__ and path.startswith(str(tmp_path))


@pytest.mark.parametrize("other_version", [None, "0.0.9"])
def test_doctor_reports_both_distributions(wheel, kernels_wheel, tmp_path, other_version):
    environment = create_environment(tmp_path / "venv").install(wheel).install(kernels_wheel)
    if other_version:
        (path,) = environment.folder.glob("lib/python*/site-packages/simcast_kernels-*.dist-info/METADATA")
        path.write_text(path.read_text().replace(f"\nVersion: {__version__}\n", f"\nVersion: {other_version}\n"))
    environment.run("python", "-c", "import simcast_hpc, simcast_kernels", cwd=tmp_path)
    done = environment.run("simcast", "doctor", "--json", "--min-free-gib", "0", cwd=tmp_path, check=False)
    ((_, node),) = json.loads(done.stdout)["nodes"].items()
    (finding,) = (one for one in node["findings"] if one["check"] == "versions")
    assert finding["severity"] == ("error" if other_version else "warning")
    assert f"simcast-kernels {other_version or __version__}" in finding["message"]
