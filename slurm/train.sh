#!/bin/bash
# Train one stage in one job, which can be resumed.
#
#     RUN_DIR=runs/sevir/teacher sbatch --account=... slurm/train.sh teacher/sevir [--set key=value ...]
#
# from the root of the repository. docs/guides/slurm.md describes variables, exit statuses and how to stop a job.
#SBATCH --job-name=simcast-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-.}/slurm/job.sh"

begin_job train.sh
[ -f "${1:-}" ] || [[ ${1:-} =~ ^[a-z]+/[a-z0-9-]+$ ]] ||
  leave $INVALID "the first argument is the configuration of a stage, a file or a name such as teacher/sevir"
require_data
reject_if_stopped "$1"
check_nodes
stage_data
run_step "$1" -- "$PYTHON" -m simcast_hpc train "$1" --set "$(setting run_dir "$RUN_DIR")" \
  --set "$(setting data.root "$data_root")" "${@:2}"
require_marker "$RUN_DIR/DONE.json"
say "$1 complete: $RUN_DIR"
