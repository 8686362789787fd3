"""The parts of the page of performance: their ratios on small tables by hand, their commands, what is left out."""

import dataclasses

import pytest

from benchmarks import end_to_end, inference, peers, report, sampling, scaling, scoring, zero_stages
from benchmarks import sevir_data as data
from benchmarks.harness import MADE
from benchmarks.report_markdown import milliseconds, number, read, table, times
from benchmarks.report_parts import (
    PARTS,
    end_to_end_part,
    inference_part,
    measured,
    opening_part,
    peers_part,
    preparation_part,
    reading_part,
    sampling_part,
    scoring_part,
)
from benchmarks.report_ranks import scaling_part, zero_stages_part
from tests.benchmarks.report_tables import (
    INFERENCE,
    OPENING,
    PEERS,
    PREPARATION,
    READING,
    SAMPLING,
    SCALING,
    SCORING,
    STEPS,
    ZERO,
)

# What each table is written with; the page may read nothing else.
COLUMNS = {
    "peers": [field.name for field in dataclasses.fields(peers.Row)],
    "end_to_end": [field.name for field in dataclasses.fields(end_to_end.Row)],
    "sampling": sampling.COLUMNS,
    "inference": inference.COLUMNS,
    "scoring": scoring.COLUMNS,
    "data_reading": data.READING,
    "data_preparation": data.PREPARATION,
    "data_opening": data.OPENING,
    "zero_stages": zero_stages.COLUMNS,
    "scaling": scaling.FIELDS,
}
TABLES = {
    "peers": PEERS, "end_to_end": STEPS, "inference": INFERENCE, "sampling": SAMPLING, "scoring": SCORING,
    "data_reading": READING, "data_preparation": PREPARATION, "data_opening": OPENING, "zero_stages": ZERO,
    "scaling": SCALING,
}  # fmt: skip


def cells(text: str, *first: str) -> list[str]:
    """Return the cells of the line that begins with ``first``, the rest of them."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(first)} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][len(first) :]


def test_ours_stands_beside_the_public_code():
    found = cells("\n".join(peers_part(read(PEERS))), "net")
    assert found == [
        "fp32", "1x2", "8 / 2", "4.00x", "4 / 2.5", "1.60x", "0.25 / 0.4", "3 / 2", "1.50x", "0.0 / 1e-6", "2", "1.5",
        "abc", "def",
    ]  # fmt: skip
    drawn = PEERS.replace("net,", "sampling,").replace(",step,", ",ensemble,")
    text = "\n".join(peers_part(read(drawn)))
    assert cells(text, "sampling")[3] == "4.00x" and "`sampling` is an ensemble" in text
    alone = [row for row in read(PEERS) if row["provider"] == "ours"]
    assert "| net |" not in peers_part(alone)[1], "what stands beside nothing is left out"


def test_steps_and_their_kinds():
    text = "\n\n".join(end_to_end_part(read(STEPS)))
    whole, shares = text.split("Shares of the calling")
    assert cells(whole, "net") == [
        "none", "fp32", "1x2", "2.5 M", "1,234", "0.5", "2", "1", "1", "0.7", "0.1", "25 %", "2.0", "def",
    ]  # fmt: skip
    assert cells(whole, "big")[6:13] == ["-"] * 7, "counted only"
    assert "`python -m benchmarks.end_to_end --case net --rounds 1`; `python" in text
    assert "`python -m benchmarks.end_to_end --case big --most-gb 0`" in text
    assert cells(shares, "net") == ["none", "fp32", "75 %", "25 %"]
    counted = [row for row in read(STEPS) if row["case"] == "big"]
    assert "Shares of" not in "\n".join(end_to_end_part(counted)), "of no step that was profiled"


def test_a_forecast_by_each_way():
    text = "\n".join(inference_part(read(INFERENCE)))
    assert cells(text, "net", "graph") == [
        "fp32", "1x2", "2", "1 to 3", "2.00x", "1e-7", "10", "2", "1.0", "def",
    ]  # fmt: skip
    assert cells(text, "net", "eager")[4] == "1.00x"
    assert "`python -m benchmarks.inference --precision fp32 --way eager graph --repeats 10`" in text


def test_ensembles_by_each_way():
    text = "\n".join(sampling_part(read(SAMPLING)))
    assert cells(text, "ddim-20", "batched") == [
        "SEVIR", "4x12x4x12x12", "float32", "4", "3.5 to 4.5", "1", "1.50x", "2", "1.0", "def",
    ]  # fmt: skip
    assert cells(text, "ddim-20", "member by member")[5:7] == ["1.5", "1.00x"]
    assert cells(text, "decode", "batched")[6] == "-", "never drawn one after the other"
    assert "`python -m benchmarks.sampling --device cpu --members 4 --repeats 2 --size 96`; `python" in text
    assert text.count("python -m") == 2 and "--size 64 --small`." in text, "each command once"


def test_scoring_beside_the_released_evaluator():
    text = "\n".join(scoring_part(read(SCORING)))
    assert cells(text, "ours, maxima") == [
        "12x384x384", "6", "100", "90 to 125", "2.00x", "50", "3.00x", "20", "1.0", "abc", "def",
    ]  # fmt: skip
    assert "Command: `python -m benchmarks.scoring --cascast PATH --repetitions 20`. Machine: a CPU" in text


def test_reading_over_the_public_loader():
    text = "\n".join(reading_part(read(READING)))
    assert cells(text, "ours", "contiguous", "random") == ["60", "1.50x", "6.00x", "-", "-", "-"]
    assert cells(text, "public loader", "gzip", "random") == ["10", "1.00x", "1.00x", "5", "1.00x", "1.00x"]
    assert cells(text, "ours", "shards lz4", "random") == ["80", "-", "8.00x", "20", "-", "4.00x"]
    assert "Load 1.5, commit def, public commit abc." in text
    assert "--public PATH --parts reading --events 12 --size 384 --repetitions 5`" in text
    alone = "\n".join(reading_part([row for row in read(READING) if row["provider"] == "ours"]))
    assert "`python -m benchmarks.sevir_data --parts reading" in alone and "public commit" not in alone


def test_preparation_beside_the_bare_loop_and_one_rank():
    text = "\n".join(preparation_part(read(PREPARATION)))
    assert cells(text, "in process", "gzip", "lz4", "1")[:5] == ["90", "100", "0.90x", "-", "40"]
    assert cells(text, "command", "gzip", "lz4", "2")[:5] == ["-", "132", "-", "1.10x", "-"]
    assert "--parts preparing --events 12 --size 384 --repetitions 5`" in text, "not the half that the command has"


def test_opening():
    assert cells("\n".join(opening_part(read(OPENING))), "189,790") == ["569,370", "1.25", "300", "1.0", "def"]


def test_stages_over_the_first():
    text = "\n".join(zero_stages_part(read(ZERO)))
    assert cells(text, "3", "31.4 M") == [
        "fp32", "2", "2", "3", "0.75x", "1.33", "1.25", "2,207 / 299", "1,134 / 382", "5", "2.0", "def",
    ]  # fmt: skip
    assert cells(text, "1", "31.4 M")[4] == "-", "bf16 has no stage 0"
    assert "--stages 0 3 --precision fp32 --micro 2 --steps 5`; `python" in text and text.count("python -m") == 2


def test_steps_over_links_are_medians_of_their_turns():
    text = "\n".join(scaling_part(read(SCALING)))
    assert cells(text, "2", "1", "bf16") == [
        "1", "50", "4", "0.3", "15.4", "1.004", "3", "0.75x", "3", "2.5", "def",
    ]  # fmt: skip
    assert cells(text, "1", "0", "fp32")[1:7] == ["free", "2", "0.4", "0", "-", "-"]
    assert cells(text, "4", "3, hpZ 2", "fp32")[0] == "2"
    assert "--turns 3 --steps 2 --megabits 50`" in text and "1024" not in text, "predictions are not measured"
    assert scaling_part([row for row in read(SCALING) if row["kind"] == "model"]) == []


def test_only_tables_with_rows_have_a_part():
    assert measured({}) == [] and measured({"scoring": [], "unknown": read(SCORING)}) == []
    titles = [text for text in measured({name: read(text) for name, text in TABLES.items()}) if text[0] == "#"]
    assert titles == [f"### {title}" for title in PARTS]
    assert [text for text in measured({"data_opening": read(OPENING)}) if text[0] == "#"] == [
        "### Reading and preparing data"
    ]


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_table_is_written_with_what_the_page_and_a_comparison_read(name):
    assert {name for parts in PARTS.values() for name in parts} == set(COLUMNS)
    columns, rows = set(COLUMNS[name]), read(TABLES[name])
    assert {*report.KEYS[name], *report.NUMBERS[name], *MADE} <= columns
    assert set(rows[0]) <= columns, "a table here has no column that the benchmark does not write"
    keys = [tuple(row[key] for key in report.KEYS[name]) for row in rows]
    assert len(set(keys)) == len(keys), "a key names one row"
    assert report.compared(name, rows, rows) == []


def test_a_table_that_had_other_columns_is_new():
    before = [{"part": "decode", "p50_s": "1"}]
    told = report.compared("sampling", before, read(SAMPLING)[:1])
    assert [line.rsplit(": ")[1] for line in told] == ["gone", "new"]


def test_numbers_keep_three_digits():
    assert [number(text) for text in ("", "0.012345", "1.2345", "98.76", "44728.8")] == [
        "-", "0.0123", "1.23", "98.8", "44,729",
    ]  # fmt: skip
    assert (milliseconds("0.0125"), milliseconds("")) == ("12.5", "-")
    assert times({"s": "3"}, {"s": "2"}, "s") == "1.50x"
    assert {times(None, {"s": "2"}, "s"), times({"s": ""}, {"s": "2"}, "s"), times({"s": "2"}, {}, "s")} == {"-"}
    assert table(("a",), [("b|c",)]).splitlines()[-1] == "| b\\|c |"
