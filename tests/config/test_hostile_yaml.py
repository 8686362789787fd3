"""YAML and JSON files of other people: bounded work, and always an error of ours with file and line."""

import time
from pathlib import Path

import pytest

from simcast_hpc.config import ConfigError, TrainConfig, from_mapping, read_config, read_run_config
from simcast_hpc.config.text_files import read_json_file
from simcast_hpc.config.yaml_files import load_yaml
from simcast_hpc.monitoring.metrics import MetricsWriter, read_metrics
from simcast_hpc.storage.run_directory import RunDirectory

HEAD = "name: a\nrun_dir: runs/a\nstage: direct\n"


def _bomb(first: str, repeat: str) -> str:
    levels = [f"a{n}: &a{n} " + repeat.replace("*", f"*a{n - 1}") for n in range(1, 15)]
    return "\n".join([f"a0: &a0 {first}", *levels])


HOSTILE = {
    "alias bomb": (_bomb("[x, x]", "[" + "*, " * 9 + "]"), "expands to more than 100000 values in line 9"),
    "mapping bomb": (_bomb("{a: 1}", "{a: *, b: *, c: *, d: *}"), "expands to more than 100000 values in line "),
    "merge bomb": (_bomb("{k: 1}", "{<<: [*, *, *, *]}"), "expands to more than 100000 values in line "),
    "own value": ("a: &a [*a]", r"\*a is within its own value in line 4"),
    "own value in a mapping": ("a: &a {b: {c: *a}}", r"\*a is within its own value"),
    "own value merged": ("a: &a {<<: *a}", r"\*a is within its own value"),
    "date": ("a: 2001-99-99", "'2001-99-99' is not a valid timestamp: month must be in 1..12 in line 4, column 4"),
    "29 February": ("a: 2019-02-29", "'2019-02-29' is not a valid timestamp"),
    "time": ("a: 2001-01-01T99:00:00", "hour must be in 0..23 in line 4"),
    "time zone": ("a: 2001-01-01 00:00:00 +99:99", "is not a valid timestamp.* in line 4"),
    "tagged date": ("a: !!timestamp noon", "'noon' is not a valid timestamp in line 4"),
    "tagged integer": ("a: !!int x", "'x' is not an integer.* in line 4"),
    "tagged empty integer": ("a: !!int ''", "'' is not an integer"),
    "tagged float": ("a: !!float x", "could not convert string to float: 'x' in line 4"),
    "tagged empty float": ("a: !!float ''", "'' is not a valid float in line 4"),
    "tagged boolean": ("a: !!bool maybe", "'maybe' is not a valid bool in line 4"),
    "binary": ("a: !!binary aGk=", "binary' in line 4"),
    "set": ("a: !!set {b}", "set' in line 4"),
    "Python": ("a: !!python/object/apply:os.getcwd []", "python/object/apply:os.getcwd' in line 4"),
    "text of a mapping": ("a: !!str {b: c}", "expected a scalar node.* in line 4"),
    "octal": ("seed: 010", "'010' is not an integer: write it without leading zeros"),
    "sexagesimal": ("seed: 1:30", "'1:30' is not an integer"),
    "sexagesimal float": ("seed: 1:30.5", "1:30.5 is not a number"),
    "digits": ("seed: " + "9" * 5000, r"9999\.\.\. \(5000 characters\)' is not an integer"),
    "hexadecimal digits": ("seed: 0x" + "f" * 5000, "is not an integer"),
    "colons": ("seed: 1" + ":1" * 50_000, "is not an integer"),
    "64 bits": ("seed: 9223372036854775808", "9223372036854775808 does not fit in 64 bits in line 4"),
    "brackets": ("a: " + "[" * 100_000, "nested deeper than 64 levels in line 4"),
    "braces": ("a: " + "{" * 100_000, "nested deeper than 64 levels in line 4"),
    "indentation": ("a:\n" + "".join(" " * n + "a:\n" for n in range(1, 500)), "nested deeper than 64 levels"),
    "tab": ("a:\n\tb: 1", r"found character '\\t' that cannot start any token in line 5"),
    "escape character": ("a: \x1b", "character 27 at position"),
    "two documents": ("---\nb: 1", "found another document"),
    "merged number": ("a: {<<: 3}", "for merging.* in line 4"),
    "mapping as a key": ("a: {? {b: 1} : 2}", "is not a name"),
    "no anchor": ("a: *b", "undefined alias 'b' in line 4"),
    "version": ("%YAML 9.9\n---\na: 1", "not valid YAML"),
    "tag without a type": ("a: =", "not valid YAML.* in line 4"),
    "infinity": ("loss: {weights: [.inf]}", r"loss\.weights\.0: .*finite"),
    "infinity by its exponent": ("optimizer: {learning_rate: 1e400}", r"optimizer\.learning_rate: .*finite"),
    "NaN": ("optimizer: {learning_rate: .nan}", r"optimizer\.learning_rate: .*finite"),
    "word for a number": ("seed: on", "seed: .*got True"),
    "date as a key": ("2001-01-01: 3", "keys must be str"),
    "half a character": ('seed: "\\ud800"', "is not a valid str.* in line 4"),
    "equal keys of two types": ("a: {1: 2, '1': 3}", "duplicate key '1' in line 4"),
    "too large": ("a: " + "x" * 2**20, "is larger than 1 MiB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_an_error_of_ours(tmp_path, case):
    text, message = HOSTILE[case]
    path = tmp_path / "run.yaml"
    path.write_text(HEAD + text + "\n", encoding="utf-8", errors="surrogatepass")
    start = time.process_time()
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml.*{message}"):
        read_run_config(path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: {stage: [teacher]}", r"stages\.teacher\.stage=\['teacher'\] must be one of teacher, direct"),
        (
            "teacher: {run_dir: /etc}",
            r"stages\.teacher\.run_dir='/etc': it is folder teacher of the pipeline's run_dir",
        ),
        ('teacher: {data: {root: "a\\0b"}}', "a text contains a NUL character"),
    ],
)
def test_hostile_stages_are_errors_of_ours(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: a\nrun_dir: b\nstages: {{{text}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_run_config(path)


def test_names_that_are_too_long_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_config(TrainConfig, "x" * 5000)
    path = tmp_path / "run.yaml"
    path.write_text(f"{HEAD}data: {{dataset: {'x' * 5000}.yaml}}\n", encoding="utf-8")
    assert read_config(TrainConfig, path).data.dataset.endswith("x.yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marked_encodings_are_read(tmp_path, encoding):
    path = tmp_path / "run.yaml"
    path.write_bytes((HEAD + "seed: 7\n").encode(encoding))
    assert read_config(TrainConfig, path).seed == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD.encode("utf-16-le"), "contains a NUL character"),
        (HEAD.encode() + b"seed: \0", "line 4: contains a NUL character"),
        (HEAD.encode() + b"a: \xff", r"byte 0xff in line 4"),
    ],
)
def test_other_encodings_are_errors_with_the_line(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"run\.yaml.*{message}"):
        read_config(TrainConfig, path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0x1F", 31), ("0o10", 8), ("0b11", 3), ("1_000", 1000), ("-0", 0), ("'010'", "010"), ("08", "08"), ("yes", True)],
)
def test_reads_unambiguous_values(text, value):
    assert load_yaml(text, where="x") == value


def test_an_alias_that_expands_to_little_is_read():
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]", where="x")["b"] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=[", "--set seed=.*not valid YAML"),
        ("seed=&a [*a]", "within its own value"),
        ("seed=2001-99-99", "not a valid timestamp"),
        ("seed=!!int x", "not an integer"),
        ("seed=010", "'010' is not an integer"),
        ("seed=\0", "character 0 at position 0"),
        ("a.b", "must be key=value"),
        (".".join(["a"] * 5000) + "=1", "Invalid configuration"),
    ],
)
def test_hostile_overrides_are_errors_of_ours(tmp_path, override, message):
    path = tmp_path / "run.yaml"
    path.write_text(HEAD, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_config(TrainConfig, path, [override])


@pytest.mark.parametrize(
    "value", [b"bytes", {1, 2}, object(), {(1, 2): 3}, 10**5000], ids=lambda value: str(type(value))
)
def test_python_values_that_are_not_plain_are_errors(value):
    data = {"name": "a", "run_dir": "r", "stage": "direct", "seed": value}
    with pytest.raises(ConfigError, match="Invalid configuration"):
        from_mapping(TrainConfig, data)


DAMAGED_JSON = {
    "empty": b"",
    "cut": b'{"inputs": {',
    "zeros": b"\0" * 40,
    "UTF-8": b'{"inputs": "\xff"}',
    "levels": b"[" * 200_000,
    "digits": b"9" * 5000,
}


@pytest.mark.parametrize("case", DAMAGED_JSON)
def test_damaged_json_names_the_file(tmp_path, case):
    path = tmp_path / "DONE.json"
    path.write_bytes(DAMAGED_JSON[case])
    with pytest.raises(ConfigError, match=r"the file .*DONE\.json"):
        read_json_file(path, error=ConfigError, what="the file")
    with pytest.raises(ConfigError, match=r"DONE\.json is damaged .*; remove it to finish the run again"):
        RunDirectory(tmp_path).marker()


@pytest.mark.parametrize("text", ["[]", '"inputs"', '{"inputs": []}', '{"inputs": null}', "{}", "3"])
def test_a_marker_of_another_structure_is_damaged(tmp_path, text):
    (tmp_path / "DONE.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is damaged: it has no mapping 'inputs'; remove it"):
        RunDirectory(tmp_path).marker()


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', "\0\0\0", '{"step": "x"}', "[" * 100_000])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n{{"step": 3, "loss": 0.5}}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 2"):
        MetricsWriter(path, Path(tmp_path / "events"), first_step=3)
