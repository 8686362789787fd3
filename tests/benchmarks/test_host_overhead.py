"""A call of an operator stays within its budget of function calls on the host, which does not depend on the machine."""

import csv
import os
import subprocess
import sys

from benchmarks.cases import op_names


def test_calls_stay_within_their_budgets(tmp_path):
    table = tmp_path / "host.csv"
    command = [sys.executable, "-m", "benchmarks.host_overhead", "--calls", "2", "--csv", str(table)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["budget_functions"]]
    assert [row["op"] for row in rows] == list(op_names())
    over = {row["op"]: row["functions"] for row in rows if int(row["functions"]) > int(row["budget_functions"])}
    assert not over
    assert min(int(row["functions"]) for row in rows) > 50, "a pass without functions was not counted"
