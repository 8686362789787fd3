"""The evidence for SimCast's method: a study of small models on synthetic storms, with seeds, controls and intervals.

python -m benchmarks.evidence.run_study        trains and scores what is still missing; any number of them at once
python -m benchmarks.evidence.collect    packs what they scored into ``results/``, small enough to commit
python -m benchmarks.evidence.evidence_page       makes ``docs/evidence.md`` and its figures from ``results/`` alone
"""
