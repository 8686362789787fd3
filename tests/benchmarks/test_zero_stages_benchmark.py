"""The benchmark of ZeRO stages at a size that takes seconds: what it measures of two ranks, and what it refuses."""

import csv

import pytest

from benchmarks import zero_stages


@pytest.mark.multi
@pytest.mark.slow
def test_states_shrink_from_stage_to_stage_as_computed(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    assert zero_stages.main(["--size", "tiny", "--stages", "0", "3", "--steps", "1", "--csv", str(path)]) == 0
    plain, shared = csv.DictReader(path.open())
    assert float(plain["samples_per_s"]) > 0 and float(plain["peak_mib"]) > 0
    assert float(shared["computed_state_mib"]) == pytest.approx(float(plain["computed_state_mib"]) / 2, abs=0.2)
    assert (plain["zero_stage"], shared["zero_stage"]) == ("0", "3") and plain["deepspeed"]
    assert plain["load"] and plain["device"].endswith("CPU, 1 threads"), "those of a rank"
    assert "ZeRO 3, 2 ranks, fp32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"), [(["--precision", "bf16"], "needs ZeRO, as in training"), (["--steps", "0"], "at least 1")]
)
def test_what_it_cannot_measure_is_rejected(words, says, capsys):
    with pytest.raises(SystemExit):
        zero_stages.main(words)
    assert says in capsys.readouterr().err
