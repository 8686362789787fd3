#!/bin/bash
# Score finished runs in one job, on all tasks.
#
#     RUN_DIR=runs/sevir/again sbatch --account=... slurm/evaluate.sh runs/sevir/teacher runs/sevir/student [option ...]
#
# from the root of the repository; options are those of `simcast evaluate`. Scores go to $RUN_DIR.
#SBATCH --job-name=simcast-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-.}/slurm/job.sh"

begin_job evaluate.sh
[ $# -ge 1 ] || leave $INVALID "the arguments are run directories, or NAME=FOLDER"
run_step "evaluation" -- "$PYTHON" -m simcast_hpc evaluate "$@" --out "$RUN_DIR"
say "scores: $RUN_DIR"
