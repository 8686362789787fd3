#!/bin/bash
# The distillation pipeline as dependent jobs: one job per part, rollouts as a job array that shares the work.
#
#     SBATCH_ACCOUNT=... bash slurm/chain.sh [--set key=value ...]
#
# from the root of the repository, on a login node: the script submits itself once per part and prints the job numbers.
# If a part fails, the parts that depend on it are cancelled. docs/guides/slurm.md describes variables and exit statuses.
#SBATCH --job-name=simcast-chain
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

submit_all() { # submit_all ARGUMENTS...
  local before='' part number more options
  site_settings
  require_data
  words_of SBATCH_OPTIONS options
  read_parts "${container[@]}" "$PYTHON" -m simcast_hpc pipeline "$CONFIG" --parts \
    --set "$(setting run_dir "$RUN_DIR")" "$@"
  export CONFIG RUN_DIR DATA_ROOT PYTHON
  for part in "${parts[@]}"; do
    more=()
    [ -z "$before" ] || more+=("--dependency=afterok:$before")
    case $part in
      prepare) more+=(--nodes=1 --ntasks-per-node=1) ;;
      *:rollouts) more+=("--array=0-$((${ROLLOUT_JOBS:-4} - 1))") ;;
    esac
    # Without this option a job whose dependency failed stays in the queue, and it cannot be added later.
    number=$(sbatch --parsable --kill-on-invalid-dep=yes --job-name="simcast-${part/:/-}" "${more[@]}" \
      "${options[@]}" slurm/chain.sh "$part" "$@")
    echo "$number $part"
    before=${number%%;*}
  done
}

if [ -z "${SLURM_JOB_ID:-}" ]; then
  submit_all "$@"
  exit
fi
begin_job chain.sh
require_data
[ $# -ge 1 ] || leave $INVALID "start it on a login node: bash slurm/chain.sh"
reject_if_stopped "$1"
case $1 in
  prepare) data_root=$DATA_ROOT ;;
  *)
    check_nodes
    stage_data
    ;;
esac
run_part "$@"
