"""Parts of ``benchmarks.run_gpu``: order of the cases, compilation ahead of the tests, child processes, summary."""
