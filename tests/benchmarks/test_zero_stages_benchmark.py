"""The benchmark of ZeRO stages: measurements of two ranks, and invalid arguments."""

import csv

import pytest

from benchmarks import zero_stages


@pytest.mark.multi
@pytest.mark.slow
def test_state_shrinks_with_the_stage_as_computed(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    assert zero_stages.main(["--size", "tiny", "--stages", "0", "3", "--steps", "1", "--csv", str(path)]) == 0
    plain, shared = csv.DictReader(path.open())
    assert float(plain["samples_per_s"]) > 0 and float(plain["peak_mib"]) > 0
    assert float(shared["computed_state_mib"]) == pytest.approx(float(plain["computed_state_mib"]) / 2, abs=0.2)
    assert (plain["zero_stage"], shared["zero_stage"]) == ("0", "3") and plain["deepspeed"]
    assert plain["load"] and plain["device"].endswith("CPU, 1 threads"), "threads per rank"
    assert "computed_state_mib" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"), [(["--precision", "bf16"], "requires ZeRO"), (["--steps", "0"], "at least 1")]
)
def test_rejects_invalid_arguments(words, message, capsys):
    with pytest.raises(SystemExit):
        zero_stages.main(words)
    assert message in capsys.readouterr().err
