"""Options that several commands share."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcast_hpc.config import POSTPROCESSING, ConfigError, SamplingConfig, expand_path, from_mapping
from simcast_hpc.config.yaml_files import load_yaml

if TYPE_CHECKING:
    from simcast_hpc.data.dataset_spec import DatasetSpec

_SPECS = Path(__file__).resolve().parents[1] / "data" / "specs"  # names only; reading them would import NumPy
DATASETS = (
    f"{', '.join(sorted(path.stem for path in _SPECS.glob('*.yaml')))}, or a YAML file (docs/reference/file-formats.md)"
)

ConfigFile = Annotated[
    Path,
    typer.Argument(
        help="Name of a shipped configuration (simcast config list), or a YAML file.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a field of the configuration, for example batch.micro_size=2 (repeatable).",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        "--scores",
        help="Additional score, such as ets, pofd, peirce, sedi, f1, mean_error, correlation or conditional_errors, or "
        "all (repeatable; default: none; docs/reference/scores.md).",
        metavar="NAME",
        show_default=False,
    ),
]
MissingMembersOption = Annotated[
    str,
    typer.Option(
        help="Pixels where some members of an ensemble are missing: mask excludes them, ignore scores the members that "
        "are present."
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help=f"Data set, which defines encoding and layout: {DATASETS} (default: dataset.yaml in the data folder, else "
        "sevir).",
        show_default=False,
    ),
]
Postprocess = Annotated[
    str,
    typer.Option(
        help=f"Post-processing of the forecast: none, {' or '.join(POSTPROCESSING)} (docs/guides/postprocessing.md)."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration before the run.")]


def override_sampling(sampling: SamplingConfig, overrides: Iterable[str]) -> SamplingConfig:
    """Return sampling settings with ``key=value`` overrides; the prefix ``sampling.`` of a key is optional.

    Raises:
        ConfigError: an override contains no equals sign, is not YAML, or is no valid setting.
    """
    settings: dict[str, Any] = sampling.model_dump(mode="json")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}: expected key=value, for example steps=6")
        settings[key.removeprefix("sampling.")] = load_yaml(value, where=f"--set {override}: the value")
    return from_mapping(SamplingConfig, settings, where="--set")


def read_dataset_option(dataset: str | None, root: Path) -> "DatasetSpec":
    """Return the data set description of the option ``--dataset``, by default that in the data folder, else of SEVIR.

    Raises:
        ConfigError: there is no such description, or it is invalid.
    """
    from simcast_hpc.data.dataset_spec import DATASET_FILE, find_spec

    has_own = (root / DATASET_FILE).is_file()
    return find_spec(dataset or (None if has_own else "sevir"), root)


class CommandGroup(typer.Typer):
    """A typer application that expands ``~`` and environment variables in all paths of its commands."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function as the command ``name``; see :meth:`typer.Typer.command`."""
        register = super().command(name, **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def with_expanded_paths(*arguments: Any, **values: Any) -> Any:
                return function(*arguments, **{key: _expand(value) for key, value in values.items()})

            return register(with_expanded_paths)

        return decorate


def _expand(value: Any) -> Any:
    if isinstance(value, Path):
        return Path(expand_path(value))
    return [_expand(each) for each in value] if isinstance(value, list) else value
