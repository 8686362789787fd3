"""Configurations: what is written is read back equal, and any text is a configuration or an error of ours."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simcast_hpc.config import ConfigError, PipelineConfig, TrainConfig, from_mapping, read_config, to_yaml
from simcast_hpc.config.names import PATTERN
from simcast_hpc.config.yaml_files import load_yaml
from simcast_hpc.data.dataset_spec import DatasetSpec, built_in_specs, read_spec

FIXED = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.from_regex(PATTERN, fullmatch=True)
PATHS = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text and str(Path(text)) == text)
FLOATS = st.floats(min_value=1e-30, max_value=1e30)
COUNTS = st.integers(1, 2**31)
FORECASTING = st.sampled_from(["teacher", "direct"])

TRAIN = st.fixed_dictionaries(
    {"name": NAMES, "run_dir": PATHS, "stage": FORECASTING},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "max_steps": COUNTS,
        "data": st.fixed_dictionaries(
            {},
            optional={
                "root": st.none() | PATHS,
                "file_names": st.none() | st.lists(st.text(max_size=10), max_size=3),
                "max_percent_missing": st.none() | FLOATS,
                "augment": st.booleans(),
                "stage_to": st.none() | st.text(max_size=10),
            },
        ),
        "loss": st.fixed_dictionaries(
            {}, optional={"thresholds": st.just([0.5, 10.0]), "unit": st.just("mm/h"), "weights": st.just([1, 1e-7, 5])}
        ),
        "optimizer": st.fixed_dictionaries({}, optional={"learning_rate": FLOATS}),
        "watch": st.fixed_dictionaries({}, optional={"hang_minutes": st.none() | FLOATS, "spike_window": COUNTS}),
    },
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=6,
)


@settings(FIXED, max_examples=60)
@given(data=TRAIN)
def test_a_configuration_is_read_back_equal(tmp_path, data):
    try:
        config = from_mapping(TrainConfig, data)
    except ConfigError:  # combinations that the sections reject
        return
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_config(TrainConfig, path) == config


@pytest.mark.parametrize("name", sorted(built_in_specs()))
def test_a_description_is_read_back_equal(tmp_path, name):
    path = tmp_path / "data.yaml"
    path.write_text(to_yaml(read_spec(name)), encoding="utf-8")
    read = read_config(DatasetSpec, path)
    assert read == read_spec(name) and hash(read.encoding) == hash(read_spec(name).encoding)
    assert read.encoding != read_spec("hko7" if read.encoding.kind == "sevir_vil" else "sevir").encoding


@settings(FIXED, max_examples=60)
@given(key=st.text(max_size=12), value=VALUES, section=st.sampled_from(["", "data", "optimizer", "loss"]))
def test_unknown_keys_are_rejected(key, value, section):
    known = TrainConfig.model_fields[section].default if section else TrainConfig
    if key in (type(known) if section else known).model_fields:
        return
    data: dict = {"name": "a", "run_dir": "r", "stage": "direct"}
    (data.setdefault(section, {}) if section else data)[key] = value
    with pytest.raises(ConfigError):
        from_mapping(TrainConfig, data)


@settings(FIXED, max_examples=100)
@given(data=st.dictionaries(st.sampled_from([*PipelineConfig.model_fields, "stage", "x"]), VALUES, max_size=5))
def test_any_mapping_is_a_configuration_or_an_error(data):
    for cls in (TrainConfig, PipelineConfig):
        try:
            from_mapping(cls, {"name": "a", "run_dir": "r", "stage": "direct", **data})
        except ConfigError:
            continue


SNIPPETS = st.sampled_from(
    ["a: ", "name: a\n", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!int ", "!!timestamp ", "!!float ", "!!bool ",
     "!x ", "? ", ": ", "|\n", ">\n", "'", '"', "\\x", "#", "%YAML ", "---\n", "...\n", "2001-01-01", "99:99", "0x",
     "1e", "\n", "  ", "\t", ",", "~", "@", "=", ".inf", "0o8", "\ufeff", "\x85", "\u2028"]
)  # fmt: skip


@settings(FIXED, max_examples=300)
@given(parts=st.lists(SNIPPETS | st.text(max_size=4), max_size=12))
def test_any_text_is_yaml_or_an_error(parts):
    try:
        load_yaml("".join(parts), where="x")
    except ConfigError as error:
        assert str(error).startswith("x is not valid YAML: ") and "\n" not in str(error)


@settings(FIXED, max_examples=100)
@given(content=st.binary(max_size=60), head=st.sampled_from([b"", b"name: a\nrun_dir: b\nstage: direct\n"]))
def test_any_file_is_a_configuration_or_an_error(tmp_path, content, head):
    path = tmp_path / "run.yaml"
    path.write_bytes(head + content)
    try:
        assert isinstance(read_config(TrainConfig, path), TrainConfig)
    except ConfigError as error:
        assert "run.yaml" in str(error)
