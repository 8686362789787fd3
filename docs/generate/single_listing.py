"""Griffe extension for mkdocstrings: list each object once, in the module that defines it.

A package imports the names of its modules, so that users import from the package; without this extension each of these
names would be on the page twice.
"""

from typing import Any

import griffe


class SingleListing(griffe.Extension):
    """Removes imported members from modules after a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_options: Any) -> None:
        """Remove the imported members of all modules of the package."""
        self._visit(pkg)

    def _visit(self, module: griffe.Module) -> None:
        for name, member in list(module.members.items()):
            if member.is_alias:
                module.del_member(name)
            elif member.is_module and isinstance(member, griffe.Module):
                self._visit(member)
