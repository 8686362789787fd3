"""Build steps that pyproject.toml cannot express; all metadata is there.

The package ``simcast_kernels`` is mapped from ``kernels/``, the configurations are copied into the wheel, version and
commit are stored in the wheel and the sdist, and relative links are removed from the README of the metadata.
"""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent


def write_build_info(package: Path) -> None:
    """Write ``_build.py`` into a copy of ``simcast_hpc``; a tree unpacked from an sdist has one, which is kept."""
    if not (ROOT / "simcast_hpc" / "_build.py").exists():
        version = runpy.run_path(str(ROOT / "simcast_hpc" / "version.py"))
        values = {"VERSION": version["__version__"], "COMMIT": version["describe_commit"](ROOT.resolve())}
        lines = [f"{name} = {value!r}\n".replace("'", '"') for name, value in values.items()]
        (package / "_build.py").write_text("".join(lines), encoding="utf-8")


class BuildPackages(build_py):
    """Also copy the configurations and the build information, except for an editable installation."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib) / "simcast_hpc"
            shutil.copytree(ROOT / "configs", package / "configs", dirs_exist_ok=True)
            write_build_info(package)


class BuildSource(sdist):
    """Add the build information to the sdist, which has no repository."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_build_info(Path(base_dir) / "simcast_hpc")


def readme() -> str:
    """Return README.md without images and relative links: an index page cannot resolve them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    # kernels/ has no __init__.py: the folder stays top-level and hides no other package "kernels".
    package_dir={"simcast_kernels": "kernels/simcast_kernels"},
    packages=find_packages(include=["simcast_hpc*"]) + find_packages("kernels", include=["simcast_kernels*"]),
    cmdclass={"build_py": BuildPackages, "sdist": BuildSource},
)
