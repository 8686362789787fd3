#!/bin/bash
# SimCast on SEVIR: the teacher, then the student, each a job step that goes on where it stopped.
#
#     sbatch --account=... --partition=... slurm/distill_sevir.sh [--set key=value ...]
#
# from the root of the repository. slurm/README.md has the variables, the exit statuses and how to stop a job.
#SBATCH --job-name=distill-sevir
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

REFUSED=2 NO_MARKER=70 STOPPED=75

leave() { # leave STATUS REASON
  echo "$(date -Is) $2" >&2
  exit "$1"
}

[ -n "${SLURM_JOB_ID:-}" ] || leave $REFUSED "This is a batch script: sbatch slurm/distill_sevir.sh"
cd "${SLURM_SUBMIT_DIR:?}"
if [ -f slurm/site.env ]; then
  # shellcheck source=slurm/site.env.example
  source slurm/site.env
fi
: "${RUN_DIR:=runs/sevir}" "${PYTHON:=.venv/bin/python}" "${MAX_RESTARTS:=20}"
[ -n "${SEVIR_ROOT:-}" ] || leave $REFUSED "SEVIR_ROOT is not set: the folder that holds CATALOG.csv and data/vil"
[ -f "$SEVIR_ROOT/CATALOG.csv" ] || leave $REFUSED "SEVIR_ROOT=$SEVIR_ROOT holds no CATALOG.csv"
mkdir -p "$RUN_DIR"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Two jobs that share a node must not meet at one port.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
# srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export HDF5_USE_FILE_LOCKING=FALSE PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# A job that is killed while it compiles an operator leaves a lock; later jobs that find it wait for ever.
scratch=$(dirname "$(mktemp -u)")/simcast-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton_cache}

step='' interrupted=0 cancelled=0

near_the_limit() {
  interrupted=1
  if [ -e "$RUN_DIR/STOP" ]; then
    echo "$(date -Is) USR2: the time limit is near, and $RUN_DIR/STOP is there: not queued again"
  elif [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
    echo "$(date -Is) USR2: the time limit is near, and MAX_RESTARTS=$MAX_RESTARTS is reached: not queued again"
  else
    echo "$(date -Is) USR2: the time limit is near: queued again, to go on from the newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID" || echo "$(date -Is) scontrol cannot requeue: training goes on to the limit"
  fi
}

# scancel sends TERM. Whoever cancels a job does not want it back.
cancel() {
  interrupted=1 cancelled=1
  [ -z "$step" ] || kill -TERM "$step" 2>/dev/null || true
}
trap near_the_limit USR2
trap cancel TERM

train() { # train STAGE ARGUMENTS...: start it, or go on with it, up to its marker
  local stage=$1 state
  shift
  [ ! -e "$RUN_DIR/STOP" ] || leave $STOPPED "$RUN_DIR/STOP is there: $stage is not started"
  echo "$(date -Is) $stage"
  srun --label --kill-on-bad-exit=1 "$PYTHON" -m simcast_hpc train "configs/$stage/sevir.yaml" \
    --set "run_dir=$RUN_DIR/$stage" --set "data.root=$SEVIR_ROOT" "$@" &
  step=$!
  # A trap ends wait before the step ends; then it is waited for again.
  while :; do
    interrupted=0 state=0
    wait "$step" || state=$?
    [ $interrupted = 1 ] || break
  done
  step=''
  [ $cancelled = 0 ] || leave 143 "cancelled in $stage"
  [ "$state" = 0 ] || leave "$state" "$stage ended with $state"
  # After a node failure srun can say 0 although ranks are gone.
  [ -f "$RUN_DIR/$stage/DONE.json" ] || leave $NO_MARKER "srun says $stage ended well, but its DONE.json is not there"
}

echo "$(date -Is) job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST," \
  "master $MASTER_ADDR:$MASTER_PORT, commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
train teacher "$@"
train student --set "student.teacher=$RUN_DIR/teacher" "$@"
echo "$(date -Is) teacher and student are done: $RUN_DIR"
