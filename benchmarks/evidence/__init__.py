"""Study of SimCast's method with small models on synthetic storms: seeds, controls and confidence intervals.

python -m benchmarks.evidence.run_study      # trains and scores missing units; any number of processes
python -m benchmarks.evidence.collect        # packs the scores into ``results/``
python -m benchmarks.evidence.evidence_page  # writes ``docs/results/evidence.md`` and its figures from ``results/``
"""
