"""Griffe extension for mkdocstrings: list each object once, in the module that defines it.

A package imports the names of its modules, so that users import from the package; without this extension each of these
names would be on the page twice.
"""

from typing import Any

import griffe


class SingleListing(griffe.Extension):
    """Removes imported members from modules after a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_options: Any) -> None:
        """Remove the members that a module of the package imports from another module of the package."""
        self._visit(pkg, pkg.name)

    def _visit(self, module: griffe.Module, package: str) -> None:
        for name, member in list(module.members.items()):
            if isinstance(member, griffe.Alias):
                if member.target_path.split(".")[0] == package:  # griffe itself needs others, such as `dataclass`
                    module.del_member(name)
            elif isinstance(member, griffe.Module):
                self._visit(member, package)
