"""With ``engine.offload=optimizer`` a non-finite gradient is seen although its copy to the host arrives late."""

import json
import subprocess
import sys

from tests.multi_rank.runs import environment


def test_a_late_non_finite_gradient_stops_or_skips_the_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.delayed_offload_copies", str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    cases = [json.loads(line) for line in (tmp_path / "stages.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [case["stage"] for case in cases] == [1, 2]
    for case in cases:
        assert "the gradient of optimizer step 3 is not finite although every loss is: windows window" in case["stop"]
        assert case["skip"] == case["never"] == ""
        # The skipped step changes nothing, so the step after it is the third one of the run without it.
        assert case["weights after skip"] == case["weights after never"] != case["weights after stop"]
