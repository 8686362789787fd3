"""Base classes of the configuration: strict models, sections with the stages that read them, operational fields."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

Stage = Literal["teacher", "direct", "student", "autoencoder", "diffusion"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FORECASTING: tuple[Stage, ...] = ("teacher", "direct", "student")

T = TypeVar("T")
_OPERATIONAL = "operational"
# The type of a field that decides where or how a run executes, never its result. All other fields are scientific.
Operational = Annotated[T, _OPERATIONAL]
_ADDED = "added"
# The type of a scientific field that older runs lack: at its default it is omitted from the identity of a run, so that
# they can still be resumed and loaded.
Added = Annotated[T, _ADDED]


@dataclasses.dataclass(frozen=True)
class Unit:
    """Unit of a numeric field: ``Annotated[PositiveInt, Unit("frames")]``; ``Unit("1")`` is dimensionless."""

    name: str


class StrictModel(BaseModel):
    """A frozen model that rejects unknown keys, implicit type conversion, NaN and infinity.

    The docstring below a field is its description.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def other_kind(cls, data: Mapping[str, Any]) -> str | None:
        """Return a message if ``data`` is evidently another kind of configuration, else None."""
        return None

    def unread_sections(self) -> set[str]:
        """Return the names of the sections that no stage of this configuration reads."""
        return set()


class Section(StrictModel):
    """A section of a training configuration; ``class A(Section, read_by=("student",))`` limits the stages."""

    read_by: ClassVar[tuple[Stage, ...]] = STAGES

    def __init_subclass__(cls, *, read_by: tuple[Stage, ...] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if read_by is not None:
            cls.read_by = read_by


def unread_sections(config: BaseModel, stages: Collection[str]) -> set[str]:
    """Return the names of the sections of ``config`` that none of ``stages`` reads."""
    sections = ((name, getattr(config, name)) for name in type(config).model_fields)
    return {
        name for name, value in sections if isinstance(value, Section) and not set(value.read_by).intersection(stages)
    }


def reject_unread_sections(config: BaseModel, stages: Collection[str]) -> None:
    """Raise an error if a section that none of ``stages`` reads differs from its default.

    Raises:
        ValueError: names the fields, their values, the stages, and the stages that read the section.
    """
    lines = []
    for name in type(config).model_fields:
        if name not in unread_sections(config, stages):
            continue
        section, default = getattr(config, name), type(config).model_fields[name].default
        values, defaults = dict(_leaves(section, name)), dict(_leaves(default, name))
        given = [f"{key}={value}" for key, value in values.items() if defaults.get(key) != value]
        if given:
            fields = ", ".join(given[:3]) + (f" and {len(given) - 3} more" if len(given) > 3 else "")
            verb, noun = ("has" if len(given) == 1 else "have"), ("stage" if len(stages) == 1 else "stages")
            lines.append(
                f"{fields} {verb} no effect in {noun} {', '.join(stages)}; "
                f"section {name} is read by: {', '.join(section.read_by)}"
            )
    if lines:
        raise ValueError("\n  ".join(lines))


def is_operational(field: FieldInfo) -> bool:
    """Return whether a field is marked as operational where it is defined."""
    return _OPERATIONAL in field.metadata


def unit_of(field: FieldInfo) -> str | None:
    """Return the unit that a field declares, or None; every numeric field declares one."""
    return next((item.name for item in field.metadata if isinstance(item, Unit)), None)


def scientific_fields(config: BaseModel, stage: Stage, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and JSON value of every scientific field in the sections that ``stage`` reads.

    Fields of type ``Added`` are omitted at their default.
    """
    values, unset = config.model_dump(mode="json"), added_defaults(config)
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if is_operational(field) or (isinstance(value, Section) and stage not in value.read_by):
            continue
        if name in unset:
            continue
        if isinstance(value, BaseModel):
            yield from scientific_fields(value, stage, f"{above}{name}.")
        else:
            yield above + name, values[name]


def added_defaults(config: BaseModel) -> set[str]:
    """Return the names of the fields of type ``Added`` that have their default, which identities omit."""
    return {
        name
        for name, field in type(config).model_fields.items()
        if _ADDED in field.metadata and getattr(config, name) == field.default
    }


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), f"{key}.{name}")
    else:
        yield key, value
