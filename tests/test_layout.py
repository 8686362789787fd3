"""The rooms of the house: who may import whom, how long a file may be, and what it may not be called.

Imports are read from the syntax tree, so those inside functions count as well; nothing is imported here.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400
FORBIDDEN_NAMES = {"utils.py", "util.py", "common.py", "misc.py", "helpers.py"}
TOP_LEVEL = {
    ".ci", ".github", ".gitignore", ".mkdocs.yml", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "ENV.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "SECURITY.md", "benchmarks",
    "configs", "constraints-cuda.txt", "constraints.txt", "docs", "kernels", "pyproject.toml", "setup.py",
    "simcast_hpc", "slurm", "tests",
}  # fmt: skip

# From the bottom up. A module belongs to the longest name that it begins with; it may import its own layer and every
# layer below. Where two names share a layer, neither stands above the other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("simcast_hpc.config", "simcast_hpc.version"),
    ("simcast_hpc.distributed", "simcast_hpc.monitoring", "simcast_hpc.storage"),
    ("simcast_hpc.data", "simcast_hpc.radar"),
    (
        "simcast_hpc.baselines", "simcast_hpc.diffusion", "simcast_hpc.distill", "simcast_hpc.losses",
        "simcast_hpc.models", "simcast_hpc.verification",
    ),
    ("simcast_hpc.inference", "simcast_hpc.planning"),
    (
        "simcast_hpc.api", "simcast_hpc.evaluation", "simcast_hpc.export", "simcast_hpc.forecast",
        "simcast_hpc.pysteps_method", "simcast_hpc.train",
    ),
    ("simcast_hpc.pipeline", "simcast_hpc.report"),
    ("simcast_hpc.commands",),
    ("simcast_hpc.cli", "simcast_hpc.__main__"),
)  # fmt: skip
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
USERS_OF_KERNELS = (
    "simcast_hpc.diffusion", "simcast_hpc.export", "simcast_hpc.losses", "simcast_hpc.models", "simcast_hpc.planning",
    "simcast_hpc.verification",
)  # fmt: skip
# A library with one owner, and the only modules that may import it.
OWNERS = {
    "matplotlib": ("simcast_hpc.report",),
    "torch.distributed": ("simcast_hpc.distributed",),
    "deepspeed": ("simcast_hpc.distributed",),
    "mpi4py": ("simcast_hpc.distributed",),
}
KERNEL_TESTS_MAY = {"simcast_kernels", "torch", "pytest", "triton", "tests.tolerance", "benchmarks.cases"}


def repository_files() -> list[Path]:
    """Return the files that git tracks, and those it would; all files of these folders outside a checkout."""
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode == 0:
        return [ROOT / name for name in told.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


FILES = repository_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]


def module_of(path: Path) -> str:
    """Return the dotted name by which a file is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        del parts[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PYTHON}


def imports(tree: ast.AST, module: str, *, package: bool) -> Iterator[str]:
    """Yield the dotted names that a module imports; of ``from a import b``, ``a.b``.

    Whether ``b`` is a module or a thing in one is left open: a name that begins with ``a`` says enough of both.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + package]
                base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"  # `import torch` brings it along
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


@cache
def imports_of(module: str) -> tuple[str, ...]:
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return tuple(imports(tree, module, package=path.stem == "__init__"))


def begins(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def layer(name: str) -> int | None:
    """Return the layer of a module, or of a thing in it; None for the package itself, which everybody may read."""
    parts = name.split(".")
    while parts:
        if ".".join(parts) in LAYER_OF:
            return LAYER_OF[".".join(parts)]
        parts.pop()
    return None


def upward(module: str, imported: Iterable[str]) -> list[str]:
    """Return those imports of a module that lie in a higher layer."""
    own = layer(module)
    if own is None:
        return []
    return [name for name in imported if name.startswith("simcast_hpc") and (layer(name) or 0) > own]


def owned_by_others(module: str, imported: Iterable[str]) -> list[str]:
    """Return those imports of a module that belong to another one alone."""
    return [
        name for name in imported for library, owners in OWNERS.items() if begins(name, [library])
        if not begins(module, owners)
    ]  # fmt: skip


def may_use_triton(path: Path) -> bool:
    """Say whether a file is a kernel, a jitted part of one, a benchmark or a test."""
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("kernels", "simcast_kernels"):
        return path.name.startswith("kernel") or "device" in parts[2:-1]
    return parts[0] in ("benchmarks", "tests")


def only_in_package(module: str) -> bool:
    return begins(module, ["simcast_hpc", "simcast_kernels"])


OURS = sorted(filter(only_in_package, MODULES))


@pytest.mark.parametrize("module", [name for name in OURS if begins(name, ["simcast_hpc"])])
def test_lower_does_not_import_higher(module):
    assert module == "simcast_hpc" or layer(module) is not None, f"{module} stands in no layer; give it one in LAYERS"
    assert upward(module, imports_of(module)) == []


@pytest.mark.parametrize("module", OURS)
def test_libraries_with_one_owner_stay_with_it(module):
    assert owned_by_others(module, imports_of(module)) == []


@pytest.mark.parametrize("module", [name for name in OURS if begins(name, ["simcast_hpc"])])
def test_only_what_computes_uses_kernels(module):
    used = [name for name in imports_of(module) if begins(name, ["simcast_kernels"])]
    assert not used or begins(module, USERS_OF_KERNELS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_triton_stays_in_kernels(module):
    used = [name for name in imports_of(module) if begins(name, ["triton"])]
    assert not used or may_use_triton(MODULES[module])


@pytest.mark.parametrize("module", [name for name in OURS if begins(name, ["simcast_kernels"])])
def test_kernels_need_torch_and_triton_alone(module):
    allowed = {"simcast_kernels", "torch", "triton", *sys.stdlib_module_names}
    assert [name for name in imports_of(module) if name.split(".")[0] not in allowed] == []


def modules_of_a_bare_machine() -> list[str]:
    """Return the modules that ``pytest tests/kernels`` imports of ours: the tests, each conftest, what they share."""
    conftests = [name for name in MODULES if name in ("conftest", "tests.conftest")]
    shared = [name for name in MODULES if begins(name, {"tests.tolerance", "benchmarks.cases"})]
    return sorted([*(name for name in MODULES if begins(name, ["tests.kernels"])), *conftests, *shared, "tests"])


@pytest.mark.parametrize("module", modules_of_a_bare_machine())
def test_kernel_tests_run_on_a_bare_machine(module):
    foreign = [
        name for name in imports_of(module)
        if not begins(name, KERNEL_TESTS_MAY) and name.split(".")[0] not in sys.stdlib_module_names
    ]  # fmt: skip
    assert foreign == []


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path):
    assert path.name not in FORBIDDEN_NAMES, "name a file for what it holds"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_package_says_what_it_is():
    silent = [
        name for name, path in MODULES.items()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]  # fmt: skip
    assert silent == []
    folders = {path.parent for path in PYTHON if only_in_package(module_of(path))}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_top_level_stays_as_it_is():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} - TOP_LEVEL == set()


def test_kernel_ops_have_one_layout():
    folders = {path.parent for path in PYTHON if path.name == "operators.py" and "simcast_kernels" in path.parts}
    assert {f"{folder.name}_cases" for folder in folders} == {
        path.stem for path in PYTHON if path.parent.name == "cases"
    } - {"__init__"}
    for folder in folders:
        names = {path.name for path in PYTHON if path.parent == folder}
        fixed = {"__init__.py", "checks.py", "operators.py", "reference.py", "kernel.py"}
        others = {name for name in names - fixed if not name.startswith("kernel_")}
        assert fixed <= names and others <= {"geometry.py"}, folder.name


def test_the_folder_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would hide every other package called kernels"


def test_names_of_test_files_are_unique():
    stems = [path.stem for path in PYTHON if path.stem.startswith("test_")]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) == []


def test_every_environment_variable_that_is_read_is_described():
    described = set(re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "ENV.md").read_text(encoding="utf-8")))
    read = r"""environ(?:\.get|\.pop|\.setdefault)?[(\[]\s*["']([A-Z_]+)["']"""
    used = {
        name: path.name for path in PYTHON if path.parts[len(ROOT.parts)] in ("simcast_hpc", "kernels", "benchmarks")
        for name in re.findall(read, path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert "TRITON_INTERPRET" in used
    assert {name: where for name, where in used.items() if name not in described | {"PYTHONPATH"}} == {}


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("simcast_hpc.data.loader", "from simcast_hpc.train.loop import train", "simcast_hpc.train.loop.train"),
        ("simcast_hpc.data.loader", "def f():\n    from simcast_hpc import train", "simcast_hpc.train"),
        ("simcast_hpc.train.loop", "from ..report import html_report", "simcast_hpc.report.html_report"),
        ("simcast_hpc.verification.scores", "from .. import evaluation", "simcast_hpc.evaluation"),
        ("simcast_hpc.config.train_config", "import simcast_hpc.data", "simcast_hpc.data"),
        ("simcast_hpc.data.x", 'importlib.import_module("simcast_hpc.pipeline")', "simcast_hpc.pipeline"),
    ],
)  # fmt: skip
def test_an_upward_import_is_seen(module, line, found):
    assert upward(module, imports(ast.parse(line), module, package=False)) == [found]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("simcast_hpc.train.trainer", "from simcast_hpc.train.loop import train"),
        ("simcast_hpc.evaluation.evaluate", "from simcast_hpc.inference.load import load"),
        ("simcast_hpc.models.simvp", "from simcast_hpc.losses import WeightedMSE"),
        ("simcast_hpc.data.loader", "from simcast_hpc import __version__"),
    ],
)
def test_a_downward_import_passes(module, line):
    assert upward(module, imports(ast.parse(line), module, package=False)) == []


def test_a_stranger_in_an_owned_library_is_seen():
    module = "simcast_hpc.train.loop"
    for line in (
        "from torch import distributed",
        "import torch.distributed as d",
        "x = torch.distributed.is_available()",
    ):
        assert owned_by_others(module, imports(ast.parse(line), module, package=False)) == ["torch.distributed"]
    assert owned_by_others(module, ["torch", "torch.nn", "deepspeed.ops"]) == ["deepspeed.ops"]
