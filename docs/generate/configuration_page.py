"""Write docs/reference/configuration.md from the pydantic models: ``python -m docs.generate.configuration_page``."""

import dataclasses
import inspect
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.generate.field_types import describe_default, describe_type, models_in
from docs.generate.markdown_page import REFERENCE, table, write
from simcast_hpc.config import PipelineConfig, Section, SharedConfig, TrainConfig, is_operational, unit_of
from simcast_hpc.data.dataset_spec import DatasetSpec

PAGE = REFERENCE / "configuration.md"
_HEADER = ("Field", "Description", "Type", "Default", "Unit", "Kind")
_INTRODUCTION = """\
# Configuration

<!-- Written by `make reference` from the pydantic models; do not edit. -->

A training run (`simcast train`) reads one YAML file with the fields of [Training run](#training-run). A pipeline
(`simcast pipeline`) trains several stages and shares these fields between them; it adds the fields of
[Pipeline](#pipeline). A third kind of file describes a data set, see [Data set description](#data-set-description).

Override a field on the command line by its dotted name, the first column of the tables:

```bash
simcast train teacher/sevir --set data.root=/data/sevir --set batch.micro_size=2
```

Unknown fields, wrong types, NaN and infinity are rejected. `simcast config show NAME` prints a shipped configuration,
or with `--resolved` all fields that its stage uses. A stage reads only the sections whose line *Read by* contains it;
the other sections must keep their defaults.

- **Type**: `null` is the empty value of YAML; a list is written `[1, 2]`; a path is text. `010` and `1:30`, which
  YAML reads as 8 and 90, are errors.
- **Paths**: `~` at the start and `$NAME` or `${NAME}` are expanded, here and in all paths of commands and of the Python
  API. A variable that is not set is an error. `data.stage_to` is expanded on each node when training starts.
- **Unit**: `1` is a dimensionless number; fields without a number have no unit (—).
- **Kind**: a *scientific* field affects results; a checkpoint can be resumed only if all scientific fields are equal.
  An *operational* field decides where and how a run executes; it can change before a resume. Paths of inputs are
  operational, because the run stores the hash of their content among its scientific inputs.
"""
_TRAINING = "Fields of one training run, and shared fields of a pipeline. The top-level fields are:"
_PIPELINE = "A pipeline has all fields of a [training run](#training-run) except {}, and these:"
_DESCRIPTION = """\
`data.dataset` names a built-in description (`simcast_hpc/data/specs/`) or the path of a YAML file with these fields.
[Add a data set](../guides/add-dataset.md) explains how to write one. The content of a description belongs to the
scientific identity of a run."""


@dataclasses.dataclass(frozen=True)
class PageSection:
    """One table: a model, the dotted path of its fields, and what its fields inherit from the sections above."""

    title: str
    path: str
    model: type[BaseModel]
    stages: tuple[str, ...] = ()
    operational: bool = False

    @property
    def anchor(self) -> str:
        """The anchor of the section's heading."""
        return "".join(letter for letter in self.title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def sections(above: PageSection, skip: frozenset[str] = frozenset()) -> Iterator[PageSection]:
    """Yield the sections below a section, depth first; the options of a union are sections of their own."""
    for name, field in above.model.model_fields.items():
        if name in skip:
            continue
        options = children(above, name, field)
        for option in options:
            yield option
            yield from sections(option)


def children(above: PageSection, name: str, field: FieldInfo) -> list[PageSection]:
    """Return the sections of one field: none, one, or one per option of a union."""
    models = models_in(field.annotation)
    path = above.path + name
    return [
        PageSection(
            title=path if len(models) == 1 else f"{path}: {kind_of(model)}",
            path=f"{path}.",
            model=model,
            stages=model.read_by if issubclass(model, Section) else above.stages,
            operational=above.operational or is_operational(field),
        )
        for model in models
        if not (above.path.startswith("evaluation.also") and name == "data")  # the section `data` again
    ]


def kind_of(model: type[BaseModel]) -> str:
    """Return the value of the field ``kind`` that selects a model in a union."""
    return describe_type(model.model_fields["kind"]).strip("`")


def section_table(section: PageSection, skip: frozenset[str] = frozenset(), *, kinds: bool) -> str:
    """Return the table of a section; ``kinds`` adds the column that marks scientific and operational fields."""
    lines = list(_rows(section, skip))
    return table(_HEADER if kinds else _HEADER[:-1], [line if kinds else line[:-1] for line in lines])


def _rows(section: PageSection, skip: frozenset[str]) -> Iterator[list[str]]:
    for name, field in section.model.model_fields.items():
        if name in skip:
            continue
        kind = "operational" if section.operational or is_operational(field) else "scientific"
        type_, default = describe_type(field), describe_default(field)
        if models_in(field.annotation):
            links = [f"[{item.title}](#{item.anchor})" for item in children(section, name, field)] or ["[data](#data)"]
            listed = "list of " if type_.startswith("list") else ""
            plain = [part for part in type_.split(" or ") if part.startswith(("int", "float"))]
            type_ = listed + " or ".join(plain + links + (["`null`"] if "`null`" in type_ else []))
            if not plain and kind != "operational":
                kind = ""  # the fields of the section have kinds of their own
        text = (field.description or "").replace("``", "`")
        yield [f"`{section.path}{name}`", text, type_, default, unit_of(field) or "", kind]


def _section_text(section: PageSection, *, kinds: bool) -> Iterator[str]:
    yield f"### {section.title}"
    yield inspect.cleandoc(section.model.__doc__ or "").replace("``", "`")
    if section.stages:
        yield f"Read by: {', '.join(section.stages)}."
    yield section_table(section, kinds=kinds)


def page() -> str:
    """Return the text of the page."""
    training = PageSection("Training run", "", TrainConfig)
    pipeline = PageSection("Pipeline", "", PipelineConfig)
    dataset = PageSection("Data set description", "", DatasetSpec)
    shared = frozenset(SharedConfig.model_fields)
    own = " and ".join(f"`{name}`" for name in TrainConfig.model_fields if name not in shared)
    chapters = (
        (training, _TRAINING, frozenset[str](), True),
        (pipeline, _PIPELINE.format(own), shared, False),
        (dataset, _DESCRIPTION, frozenset[str](), False),
    )
    parts = [_INTRODUCTION.strip()]
    for chapter, text, skip, kinds in chapters:
        parts += [f"## {chapter.title}", text, section_table(chapter, skip, kinds=kinds)]
        for section in sections(chapter, skip):
            parts += _section_text(section, kinds=kinds)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write(PAGE, page())
