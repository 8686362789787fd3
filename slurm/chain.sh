#!/bin/bash
# The whole distillation as dependent jobs: each part one job, roll-outs an array whose tasks share the work.
#
#     SBATCH_ACCOUNT=... bash slurm/chain.sh [--set key=value ...]
#
# from the root of the repository, on a login node: it submits itself once a part, and prints the jobs. A part that
# fails ends those that wait for it. slurm/README.md has the variables, the exit statuses and how to stop a job.
#SBATCH --job-name=simcast-chain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-.}/slurm/job.sh"

submit_all() { # submit_all ARGUMENTS...
  local before='' part number more
  site_settings
  require_archive
  parts=$("$PYTHON" -m simcast_hpc pipeline "$CONFIG" --parts --set "run_dir=$RUN_DIR" "$@") ||
    leave $REFUSED "$CONFIG cannot be read; the reason stands above"
  export CONFIG RUN_DIR SEVIR_ROOT PYTHON
  for part in $parts; do
    more=()
    [ -z "$before" ] || more+=("--dependency=afterok:$before")
    case $part in
      prepare | verify) more+=(--nodes=1 --ntasks-per-node=1) ;;
      *:rollouts) more+=("--array=0-$((${ROLLOUT_JOBS:-4} - 1))") ;;
    esac
    # Without the option a job whose parent failed waits for ever, and it cannot be added later.
    # shellcheck disable=SC2086
    number=$(sbatch --parsable --kill-on-invalid-dep=yes --job-name="simcast-${part/:/-}" "${more[@]}" \
      ${SBATCH_OPTIONS:-} slurm/chain.sh "$part" "$@")
    echo "$number $part"
    before=${number%%;*}
  done
}

if [ -z "${SLURM_JOB_ID:-}" ]; then
  submit_all "$@"
  exit
fi
begin_job chain.sh
require_archive
[ $# -ge 1 ] || leave $REFUSED "on a login node: bash slurm/chain.sh"
refuse_if_stopped "$1"
case $1 in
  prepare | verify) data_root=$SEVIR_ROOT ;;
  *)
    check_nodes
    stage_data
    ;;
esac
run_part "$@"
