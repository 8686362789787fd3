"""Name, license and attribution of a data set without ``--name``, ``--license`` and ``--attribution``."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simcast_hpc.config.names import file_stem
from simcast_hpc.data.data_license import read_license

from .import_recipe import ImportOptions
from .scan_table import ScanTable
from .source_attributes import stated_terms
from .source_files import is_remote

logger = logging.getLogger(__name__)
_MOST_FILES = 20  # opened to compare their attributes


def default_name(source: str) -> str:
    """Return the last part of the path of a source that contains a letter and is no pattern, else ``radar``."""
    is_file = is_remote(source) or Path(source).is_file()
    text = source if is_remote(source) else str(Path(source).absolute() if "%" in source or "*" in source
                                                else Path(source).resolve())  # fmt: skip
    parts = [part for part in text.rstrip("/").split("/") if part and "%" not in part and "*" not in part]
    if parts and (is_file or parts[-1].endswith(".zarr")):
        parts[-1] = parts[-1].rsplit(".", 1)[0]
    named = [part for part in parts if any(letter.isalpha() for letter in part)]
    return file_stem(named[-1] if named else "radar")


def with_license(options: ImportOptions, sources: Sequence[str], table: ScanTable) -> ImportOptions:
    """Return the options with the license of a download, else of the attributes of the files, if none is given."""
    found = {
        None if is_remote(source) or not Path(source).is_dir() else read_license(Path(source)) for source in sources
    }
    terms = {None if one is None else (one.license, one.attribution) for one in found}
    only = terms.pop() if len(terms) == 1 else None
    license_, attribution = only if only is not None else _attributes(table, options)
    return replace(
        options,
        license=license_ if options.license is None else options.license,
        attribution=attribution if options.attribution is None else options.attribution,
    )


def _attributes(table: ScanTable, options: ImportOptions) -> tuple[str | None, str | None]:
    """Return license and attribution of the files and stores that agree; of many files some are opened."""
    if options.license is not None and options.attribution is not None:
        return None, None
    paths = [file.path for file, error in zip(table.files, table.errors, strict=True)
             if not error and not is_remote(file.path) and "::" not in file.path]  # fmt: skip
    chosen = {paths[k] for k in np.linspace(0, len(paths) - 1, min(len(paths), _MOST_FILES)).astype(int)}
    found = {stated_terms(path) for path in chosen}
    values: list[str | None] = []
    for option, number in (("--license", 0), ("--attribution", 1)):
        texts = {terms[number] for terms in found}
        value = texts.pop() if len(texts) == 1 else ""
        values.append(value or None)
        if value and getattr(options, option.removeprefix("--")) is None:
            logger.info("%s is %r by the attributes of %d of %d files", option, value, len(chosen), len(paths))
    return values[0], values[1]
