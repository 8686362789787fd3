"""Import single files of third-party repositories, with stubs for the packages that they import and do not use."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _StubType(type):
    """Metaclass that returns a stub for every class attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub()


class _Stub(metaclass=_StubType):
    """A class, decorator or value whose attributes and calls return stubs."""

    def __init__(self, *_arguments: Any, **_options: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub()

    def __call__(self, *_arguments: Any, **_options: Any) -> Any:
        return _Stub()


class _StubModule(types.ModuleType):
    """A module in which every attribute exists and is a stub."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import stub modules for the given packages and their submodules."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return a spec for a stubbed package."""
        if fullname.split(".")[0] in self._names or fullname in self._names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return a stub module."""
        return _StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing."""


@contextlib.contextmanager
def stub_imports(*names: str) -> Iterator[None]:
    """Import stubs for those of the packages that are not installed, only inside the block."""
    absent = tuple(name for name in names if name not in sys.modules and not _is_installed(name))
    finder = _StubFinder(absent)
    sys.meta_path.insert(0, finder)
    before = set(sys.modules)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.split(".")[0] in absent or name in absent:
                del sys.modules[name]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def execute_file(path: Path, name: str) -> Any:
    """Import a file as the module ``name`` and return it.

    Raises:
        SystemExit: the file does not exist.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} does not exist; the argument must be the root of a checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_earthformer(checkout: Path, module: str) -> Any:
    """Import a module of earth-forecasting-transformer without its packages' ``__init__`` and configuration.

    Args:
        checkout: root of the checkout.
        module: name relative to ``earthformer``, for example ``datasets.sevir.sevir_dataloader``.
    """
    for folder in ("", "utils", "metrics", "datasets", "datasets/sevir"):
        package = types.ModuleType(".".join(filter(None, ["earthformer", *folder.split("/")])))
        package.__path__ = [str(checkout / "src" / "earthformer" / folder)]
        sys.modules[package.__name__] = package
    # The configuration requires omegaconf for one folder name that is not used here.
    config = types.ModuleType("earthformer.config")
    config.cfg = types.SimpleNamespace(datasets_dir=".")  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["earthformer.config"] = config
    return importlib.import_module(f"earthformer.{module}")
