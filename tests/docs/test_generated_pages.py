"""Generated reference pages: up to date and complete."""

import re
import typing
from pathlib import Path
from types import NoneType

import pytest
import typer
from pydantic import BaseModel

from docs.generate import cli_page, configuration_page, markdown_page, protocols_page
from simcast_hpc import cli
from simcast_hpc.config import PipelineConfig, TrainConfig, unit_of
from simcast_hpc.data.dataset_spec import DatasetSpec
from simcast_hpc.verification import PROTOCOLS

GENERATORS = (cli_page, configuration_page, protocols_page)


def page(generator) -> str:
    return generator.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda one: one.PAGE.stem)
def test_page_is_up_to_date(generator):
    found = markdown_page.differences(generator.PAGE, generator.page())
    assert not found, f"{generator.PAGE.name} is out of date; run `make reference` and commit it:\n{found[:2000]}"


def test_difference_is_detected_and_the_page_is_rewritten(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown_page, "ROOT", tmp_path)
    path = tmp_path / "page.md"
    assert "+a" in markdown_page.differences(path, "a\n")
    markdown_page.write(path, "a\n")
    assert markdown_page.differences(path, "a\n") == ""


# The configuration page. This walk does not use the generator.
def leaves(annotation) -> set[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return {annotation}
    if typing.get_origin(annotation) is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    return {leaf for option in typing.get_args(annotation) for leaf in leaves(option)}


def fields(model: type[BaseModel], above: str = ""):
    """Yield model, dotted name and field of a model and of all models that it contains."""
    for name, field in model.model_fields.items():
        yield model, above + name, field
        for inner in leaves(field.annotation):
            if issubclass(inner, BaseModel):
                yield from fields(inner, f"{above}{name}.")


ALL_FIELDS = [item for model in (TrainConfig, PipelineConfig, DatasetSpec) for item in fields(model)]


def rows() -> dict[str, list[list[str]]]:
    """Return the cells of all rows of the configuration page, by field."""
    found: dict[str, list[list[str]]] = {}
    for line in page(configuration_page).splitlines():
        if line.startswith("| `"):
            name, *cells = line.strip("| ").split(" | ")
            found.setdefault(name.strip("`"), []).append(cells)
    return found


def test_walk_finds_nested_fields():
    names = {name for _, name, _ in ALL_FIELDS}
    assert {"optimizer.learning_rate", "model.stem.widths", "diffusion.casformer.width", "layout.crop.top"} <= names
    assert {"encoding.step_db", "autoencoder.discriminator.groups", "evaluation.draws", "data.hold_out.fold"} <= names
    assert len(names) > 180


def test_every_field_is_listed_with_its_description_and_unit():
    listed = rows()
    missing = []
    for model, name, field in ALL_FIELDS:
        name = name.removeprefix("evaluation.also.") if name.startswith("evaluation.also.data.") else name
        text = " ".join((field.description or "").replace("``", "`").replace("|", "\\|").split())
        cells = [cells for cells in listed.get(name, []) if cells[0] == text and cells[3] == (unit_of(field) or "—")]
        if not text or not cells:
            missing.append(f"{model.__name__}.{name}")
    assert missing == []


def test_every_numeric_field_declares_a_unit_and_no_other_field_does():
    wrong = []
    for model, name, field in ALL_FIELDS:
        kinds = leaves(field.annotation) - {NoneType}
        numeric = bool(kinds & {int, float}) and kinds <= {int, float, str}
        if numeric != (unit_of(field) is not None):
            wrong.append(f"{model.__name__}.{name}: {unit_of(field)}")
    assert wrong == []


def test_no_row_describes_a_field_that_does_not_exist():
    assert set(rows()) - {name for _, name, _ in ALL_FIELDS} == set()


def test_types_defaults_and_kinds_of_some_fields():
    listed = rows()
    assert listed["batch.micro_size"][0][1:] == ["int ≥ 1", "`1`", "samples", "operational"]
    assert listed["optimizer.warmup_fraction"][0][1:] == ["0 ≤ float < 1", "`0.3`", "1", "scientific"]
    assert listed["sampling.sampler"][0][1:] == [
        "one of `ddpm`, `ddim`, `dpm_solver`, `dpm_solver_sde`",
        "`ddim`",
        "—",
        "operational",
    ]
    assert listed["data.crop"][0][1:] == ["int ≥ 1 or [data.crop](#datacrop) or `null`", "`null`", "—", "scientific"]
    assert listed["stage"][0][2] == "required"


# The command line page
def test_every_command_and_option_is_listed():
    text = page(cli_page)

    def check(command, name):
        assert re.search(rf"^#+ simcast {name}$", text, flags=re.MULTILINE), name
        section = re.split(rf"^#+ simcast {name}$", text, flags=re.MULTILINE)[1].split("\n#")[0]
        for parameter in command.params:
            if parameter.name != "help":
                assert f"`{max(parameter.opts, key=len)}" in section or parameter.name.upper() in section, name
                assert parameter.help, f"{name}: {parameter.name} has no help text"
        if not hasattr(command, "commands"):
            assert "```bash\nsimcast " in section, f"{name} has no example"

    def walk(group, above=""):
        for name, command in group.commands.items():
            check(command, f"{above}{name}")
            if hasattr(command, "commands"):
                walk(command, f"{above}{name} ")

    walk(typer.main.get_command(cli.app))


def test_protocols_are_listed_with_their_hash():
    text = page(protocols_page)
    assert [name for name, one in PROTOCOLS.items() if f"| `{name}` | `{one.hash}` |" not in text] == []


def test_generated_pages_name_their_make_target():
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    assert "\nreference:" in makefile
    assert all("make reference" in page(generator).splitlines()[2] for generator in GENERATORS)
