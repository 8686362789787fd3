"""The benchmark of a training step, at a size that takes seconds: what it writes, what it refuses."""

import csv

import pytest

from benchmarks import train_step


def test_every_part_of_both_backbones_is_a_row(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    words = ["--device", "cpu", "--frames", "2", "2", "--size", "48", "--rounds", "1", "--csv", str(path)]
    assert train_step.main(words) == 0
    rows = list(csv.DictReader(path.open()))
    assert {(row["case"].split()[0], row["mode"]) for row in rows} == {
        (model, part) for model in ("simvp", "earthformer") for part in train_step.PARTS
    }
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["p50"]) <= float(row["p80"]) and float(row["peak_gb"]) > 0
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--rounds", "0"], "at least 1"), (["--earthformer", "nowhere"], "holds no src/earthformer")],
)
def test_what_it_cannot_time_is_rejected(words, says, capsys):
    with pytest.raises(SystemExit):
        train_step.main(words)
    assert says in capsys.readouterr().err
