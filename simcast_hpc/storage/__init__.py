"""Files and directories of runs: the run directory, atomic writes, leases, stored blocks."""
