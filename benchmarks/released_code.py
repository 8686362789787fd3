"""Running a file of somebody else's repository for one function in it, without what else the file imports."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Empty(types.ModuleType):
    """A module of which every attribute exists and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _EmptyClass(type):
    """So that ``_Anything`` itself answers to every attribute as well."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Anything(metaclass=_EmptyClass):
    """Whatever is asked of it: a class, a decorator, a number that nobody reads."""

    def __init__(self, *_arguments: Any, **_options: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __call__(self, *_arguments: Any, **_options: Any) -> Any:
        return _Anything()


class _EmptyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of the given packages, and of those below them, with empty modules."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return a spec for a package that is to be empty."""
        if fullname.split(".")[0] in self._names or fullname in self._names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return the empty module."""
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing."""


@contextlib.contextmanager
def emptied(*names: str) -> Iterator[None]:
    """Let imports of packages that are absent give empty modules; take them away again afterwards."""
    absent = tuple(name for name in names if name not in sys.modules and not _is_installed(name))
    finder = _EmptyFinder(absent)
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


def executed(path: Path, name: str) -> Any:
    """Return the module that a file of theirs makes."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"there is no {path}; give the root of the repository's checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
