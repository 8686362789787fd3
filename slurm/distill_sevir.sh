#!/bin/bash
# SimCast on SEVIR from the archive to the report: every part of the pipeline is a job step that can be resumed.
#
#     sbatch --account=... --partition=... slurm/distill_sevir.sh [--set key=value ...]
#
# from the root of the repository. docs/guides/slurm.md describes variables, exit statuses and how to stop a job.
#SBATCH --job-name=distill-sevir
#SBATCH --nodes=2
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

begin_job distill_sevir.sh
require_data
reject_if_stopped "the first part"
check_nodes
read_parts on_first_node "$PYTHON" -m simcast_hpc pipeline "$CONFIG" --parts \
  --set "$(setting run_dir "$RUN_DIR")" --set "$(setting data.root "$DATA_ROOT")" "$@"
stage_data
for part in "${parts[@]}"; do
  run_part "$part" "$@"
done
say "pipeline complete: $RUN_DIR/report/index.html"
