"""The architecture: import order of the packages, lengths and names of files, headings of long functions.

Imports are read from the syntax tree, so imports inside functions are included and no module is executed.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
MIN_LINES = 40
MAX_LINES_WITHOUT_HEADINGS = 40
FORBIDDEN_NAMES = {"utils.py", "util.py", "common.py", "misc.py", "helpers.py"}
# Every kernel op has these files and kernel*.py.
KERNEL_OP_FILES = {"__init__.py", "checks.py", "operators.py", "reference.py", "kernel.py"}
# Files below MIN_LINES that other packages import as a unit of their own.
SHORT_INTERFACES = {
    "__main__.py", "baselines/persistence.py", "config/errors.py", "diffusion/ensemble_products.py",
    "distributed/health/finding.py", "losses/autoencoder_loss.py", "models/layers.py", "monitoring/log.py",
}  # fmt: skip
TOP_LEVEL = {
    ".ci", ".github", ".gitignore", ".mkdocs.yml", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "SECURITY.md", "benchmarks",
    "configs", "constraints-cuda.txt", "constraints.txt", "docs", "kernels", "pyproject.toml", "setup.py",
    "simcast_hpc", "slurm", "tests",
}  # fmt: skip

# From bottom to top. A module belongs to the layer of its longest prefix, and may import its own layer and the layers
# below.
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
        "simcast_hpc.api", "simcast_hpc.data_arrays", "simcast_hpc.evaluation", "simcast_hpc.export",
        "simcast_hpc.forecast", "simcast_hpc.pysteps_method", "simcast_hpc.train",
    ),
    ("simcast_hpc.pipeline", "simcast_hpc.report"),
    ("simcast_hpc.commands",),
    ("simcast_hpc.cli", "simcast_hpc.__main__"),
)  # fmt: skip
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
KERNEL_USERS = (
    "simcast_hpc.diffusion", "simcast_hpc.export", "simcast_hpc.losses", "simcast_hpc.models", "simcast_hpc.planning",
    "simcast_hpc.verification",
)  # fmt: skip
# Libraries that only the listed packages may import.
OWNERS = {
    "matplotlib": ("simcast_hpc.report",),
    "torch.distributed": ("simcast_hpc.distributed",),
    "deepspeed": ("simcast_hpc.distributed",),
    "mpi4py": ("simcast_hpc.distributed",),
}
KERNEL_TEST_IMPORTS = {"simcast_kernels", "torch", "pytest", "triton", "tests.tolerance", "benchmarks.cases"}


def repository_files() -> list[Path]:
    """Return tracked files and untracked files that git does not ignore; outside a checkout, all files."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
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
    """Yield the dotted names that a module imports, ``a.b`` for ``from a import b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + package]
                base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"  # accessible after `import torch`
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
    """Return the layer of a module or of a name in it; None for the package itself, which all layers may import."""
    parts = name.split(".")
    while parts:
        if ".".join(parts) in LAYER_OF:
            return LAYER_OF[".".join(parts)]
        parts.pop()
    return None


def upward_imports(module: str, imported: Iterable[str]) -> list[str]:
    """Return the imports of a module from higher layers."""
    own = layer(module)
    if own is None:
        return []
    return [name for name in imported if name.startswith("simcast_hpc") and (layer(name) or 0) > own]


def restricted_imports(module: str, imported: Iterable[str]) -> list[str]:
    """Return the imports of a module that only other packages may use."""
    return [
        name for name in imported for library, owners in OWNERS.items() if begins(name, [library])
        if not begins(module, owners)
    ]  # fmt: skip


def may_use_triton(path: Path) -> bool:
    """Return whether a file is a kernel, contains jitted functions, or is a benchmark or a test."""
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("kernels", "simcast_kernels"):
        return path.name.startswith("kernel") or "device" in parts[2:-1]
    return parts[0] in ("benchmarks", "tests")


PACKAGE_MODULES = sorted(name for name in MODULES if begins(name, ["simcast_hpc", "simcast_kernels"]))
SIMCAST_MODULES = [name for name in PACKAGE_MODULES if begins(name, ["simcast_hpc"])]


@pytest.mark.parametrize("module", SIMCAST_MODULES)
def test_imports_point_downwards(module):
    assert module == "simcast_hpc" or layer(module) is not None, f"{module} has no layer; add it to LAYERS"
    assert upward_imports(module, imports_of(module)) == []


@pytest.mark.parametrize("module", PACKAGE_MODULES)
def test_restricted_libraries_are_imported_only_by_their_owners(module):
    assert restricted_imports(module, imports_of(module)) == []


@pytest.mark.parametrize("module", SIMCAST_MODULES)
def test_only_numerical_packages_import_kernels(module):
    used = [name for name in imports_of(module) if begins(name, ["simcast_kernels"])]
    assert not used or begins(module, KERNEL_USERS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_kernels_import_triton(module):
    used = [name for name in imports_of(module) if begins(name, ["triton"])]
    assert not used or may_use_triton(MODULES[module])


@pytest.mark.parametrize("module", [name for name in PACKAGE_MODULES if begins(name, ["simcast_kernels"])])
def test_kernels_import_only_torch_and_triton(module):
    allowed = {"simcast_kernels", "torch", "triton", *sys.stdlib_module_names}
    assert [name for name in imports_of(module) if name.split(".")[0] not in allowed] == []


def kernel_test_modules() -> list[str]:
    """Return the modules of this project that ``pytest tests/kernels`` imports."""
    conftests = [name for name in MODULES if name in ("conftest", "tests.conftest")]
    shared = [name for name in MODULES if begins(name, {"tests.tolerance", "benchmarks.cases"})]
    return sorted([*(name for name in MODULES if begins(name, ["tests.kernels"])), *conftests, *shared, "tests"])


@pytest.mark.parametrize("module", kernel_test_modules())
def test_kernel_tests_run_without_simcast_hpc(module):
    foreign = [
        name for name in imports_of(module)
        if not begins(name, KERNEL_TEST_IMPORTS) and name.split(".")[0] not in sys.stdlib_module_names
    ]  # fmt: skip
    assert foreign == []


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_name_and_length(path):
    assert path.name not in FORBIDDEN_NAMES, "name a file after its content"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_file_names_are_unique():
    """A file name identifies the module in a traceback, except for the fixed names of packages, commands and ops."""
    counts = Counter(
        path.name for path in map(MODULES.__getitem__, PACKAGE_MODULES)
        if path.name not in KERNEL_OP_FILES and path.parent.name != "commands"
    )  # fmt: skip
    assert [name for name, count in counts.items() if count > 1] == []


def test_short_files_are_public_interfaces():
    folder = ROOT / "simcast_hpc"
    short = {
        path.relative_to(folder).as_posix() for path in map(MODULES.__getitem__, SIMCAST_MODULES)
        if path.name != "__init__.py" and path.parent.name != "commands"
        and len(path.read_text(encoding="utf-8").splitlines()) < MIN_LINES
    }  # fmt: skip
    assert short - SHORT_INTERFACES == set(), "merge a short file into another one, or list it as an interface"
    assert [name for name in SHORT_INTERFACES if not (folder / name).is_file()] == []


def functions_without_headings(source: str) -> list[str]:
    """Return the functions with more than MAX_LINES_WITHOUT_HEADINGS lines of code and no step heading ``# 1. ...``."""
    lines, names = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            body = lines[first.lineno - 1 : node.end_lineno]
            code = [line for line in body if line.strip() and not line.lstrip().startswith("#")]
            if len(code) > MAX_LINES_WITHOUT_HEADINGS and not any(re.match(r"\s*# 1\. \S", line) for line in body):
                names.append(node.name)
    return names


@pytest.mark.parametrize("module", PACKAGE_MODULES)
def test_long_functions_have_step_headings(module):
    assert functions_without_headings(MODULES[module].read_text(encoding="utf-8")) == []


def test_every_package_has_a_docstring():
    undocumented = [
        name for name, path in MODULES.items()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]  # fmt: skip
    assert undocumented == []
    folders = {MODULES[name].parent for name in PACKAGE_MODULES}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_top_level_has_no_other_entries():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} - TOP_LEVEL == set()


def test_kernel_ops_have_the_same_files():
    folders = {path.parent for path in PYTHON if path.name == "operators.py" and "simcast_kernels" in path.parts}
    assert {f"{folder.name}_cases" for folder in folders} == {
        path.stem for path in PYTHON if path.parent.name == "cases"
    } - {"__init__"}
    for folder in folders:
        names = {path.name for path in PYTHON if path.parent == folder}
        others = {name for name in names - KERNEL_OP_FILES if not name.startswith("kernel_")}
        assert names >= KERNEL_OP_FILES and others <= {"geometry.py"}, folder.name


def test_kernels_folder_is_not_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow any other package named kernels"


def test_names_of_test_files_are_unique():
    stems = [path.stem for path in PYTHON if path.stem.startswith("test_")]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) == []


def test_environment_variables_are_documented():
    documented = set(
        re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8"))
    )
    pattern = r"""environ(?:\.get|\.pop|\.setdefault)?[(\[]\s*["']([A-Z_]+)["']"""
    used = {
        name: path.name for path in PYTHON if path.parts[len(ROOT.parts)] in ("simcast_hpc", "kernels", "benchmarks")
        for name in re.findall(pattern, path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert "TRITON_INTERPRET" in used
    assert {name: file for name, file in used.items() if name not in documented | {"PYTHONPATH"}} == {}


@pytest.mark.parametrize(
    ("module", "line", "imported"),
    [
        ("simcast_hpc.data.loader", "from simcast_hpc.train.loop import train", "simcast_hpc.train.loop.train"),
        ("simcast_hpc.data.loader", "def f():\n    from simcast_hpc import train", "simcast_hpc.train"),
        ("simcast_hpc.train.loop", "from ..report import html_report", "simcast_hpc.report.html_report"),
        ("simcast_hpc.verification.scores", "from .. import evaluation", "simcast_hpc.evaluation"),
        ("simcast_hpc.config.train_config", "import simcast_hpc.data", "simcast_hpc.data"),
        ("simcast_hpc.data.x", 'importlib.import_module("simcast_hpc.pipeline")', "simcast_hpc.pipeline"),
    ],
)  # fmt: skip
def test_detects_upward_import(module, line, imported):
    assert upward_imports(module, imports(ast.parse(line), module, package=False)) == [imported]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("simcast_hpc.train.trainer", "from simcast_hpc.train.loop import train"),
        ("simcast_hpc.evaluation.evaluate", "from simcast_hpc.inference.trained_model import load"),
        ("simcast_hpc.models.simvp", "from simcast_hpc.losses import WeightedMSE"),
        ("simcast_hpc.data.loader", "from simcast_hpc import __version__"),
    ],
)
def test_accepts_downward_import(module, line):
    assert upward_imports(module, imports(ast.parse(line), module, package=False)) == []


def test_detects_import_of_restricted_library():
    module = "simcast_hpc.train.loop"
    for line in (
        "from torch import distributed",
        "import torch.distributed as d",
        "x = torch.distributed.is_available()",
    ):
        assert restricted_imports(module, imports(ast.parse(line), module, package=False)) == ["torch.distributed"]
    assert restricted_imports(module, ["torch", "torch.nn", "deepspeed.ops"]) == ["deepspeed.ops"]


def test_detects_long_function_without_headings():
    function = 'def f():\n    """Return None."""\n' + "    x = 1\n" * MAX_LINES_WITHOUT_HEADINGS
    assert functions_without_headings(function) == []
    assert functions_without_headings(f"{function}    y = 2\n") == ["f"]
    assert functions_without_headings(f"{function}    # 1. Second\n    y = 2\n") == []
