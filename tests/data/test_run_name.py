"""A warning if the name of a run is that of another data set."""

import pytest

from simcast_hpc.data.dataset_spec import name_conflict, read_spec, warn_about_name

SHIPPED = [
    ("sevir-direct", "sevir"), ("sevir-direct", "sevir-lr"), ("hko7-student", "hko7-cascast"), ("radar", "mrms-4km"),
    ("quickstart", "synthetic"), ("meteonet-rain-teacher", "meteonet-rain"), ("Munich_teacher", "mch"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dataset"), SHIPPED)
def test_accepts_names_of_the_data_set_and_neutral_names(name, dataset):
    assert name_conflict(name, read_spec(dataset)) is None


@pytest.mark.parametrize(
    ("name", "dataset", "word"),
    [("sevir-direct", "mch", "sevir"), ("SEVIR_direct.2", "hko7", "sevir"), ("my-hko7", "sevir", "hko7")],
)
def test_warns_about_the_name_of_another_data_set(name, dataset, word, caplog):
    warn_about_name(name, read_spec(dataset))
    assert f"named {name!r}, but its data set is {dataset!r}, not {word!r}" in caplog.text


def test_own_data_set_with_a_copied_configuration():
    own = read_spec("mch").model_copy(update={"name": "my-radar"})
    assert "set name, for example name=my-radar-model" in str(name_conflict("sevir-direct", own))
    assert name_conflict("my-radar-direct", own) is None
