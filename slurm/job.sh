# shellcheck shell=bash
# What the batch scripts of this folder share; they source it. slurm/README.md describes its variables.

REFUSED=2 NO_MARKER=70 STOPPED=75 AGAIN=85 CANCELLED=143

say() { echo "$(date -Is) $*" >&2; }

leave() { # leave STATUS REASON...
  local state=$1
  shift
  say "$*"
  exit "$state"
}

site_settings() { # what is true of this site, and what holds where nothing is said
  if [ -f slurm/site.env ]; then
    # shellcheck source=slurm/site.env.example
    source slurm/site.env
  fi
  : "${PYTHON:=.venv/bin/python}" "${MAX_RESTARTS:=20}" "${CONTAINER:=}" "${SRUN_OPTIONS:=}" "${LOCAL_DATA:=}"
  : "${RUN_DIR:=runs/sevir}" "${CONFIG:=configs/pipeline/sevir.yaml}"
}

begin_job() { # begin_job NAME: settings of the site, variables, where the ranks meet, signals
  [ -n "${SLURM_JOB_ID:-}" ] || leave $REFUSED "This is a batch script: sbatch slurm/$1"
  cd "${SLURM_SUBMIT_DIR:?}" || leave $REFUSED "cannot change to $SLURM_SUBMIT_DIR"
  site_settings
  mkdir -p "$RUN_DIR"
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
  # Two jobs that share a node must not meet at one port.
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
  export MASTER_ADDR MASTER_PORT
  # srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  export HDF5_USE_FILE_LOCKING=FALSE PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
  # A job that is killed while it compiles an operator leaves a lock; later jobs that find it wait for ever.
  local scratch
  scratch=$(dirname "$(mktemp -u)")/simcast-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
  export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton_cache}
  step='' cancelled=0 interrupted=0 asked=0
  trap pass_on_usr2 USR2
  trap cancel TERM
  say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST," \
    "master $MASTER_ADDR:$MASTER_PORT, commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
}

# Slurm sends USR2 to this shell when the time limit is near; srun passes it on to every task, which saves and leaves.
pass_on_usr2() {
  interrupted=1 asked=1
  say "USR2: the tasks are asked to save and leave"
  [ -z "$step" ] || kill -USR2 "$step" 2>/dev/null || true
}

# scancel sends TERM to this shell as well as to the tasks; a preemption to the tasks alone. Whoever cancels a job does
# not want it back.
cancel() {
  interrupted=1 cancelled=1
  [ -z "$step" ] || kill -TERM "$step" 2>/dev/null || true
}

run_step() { # run_step NAME SRUN_OPTION... -- COMMAND...: one job step to its end; its status in $state
  local name=$1 options=()
  shift
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  refuse_if_stopped "$name"
  [ "$cancelled" = 0 ] || leave $CANCELLED "cancelled before $name"
  [ "$asked" = 0 ] || come_back "everything before $name"
  say "$name"
  # A rank that leaves with 85 must not have the others killed while they save; one that crashed ends them in a minute.
  # SRUN_OPTIONS and CONTAINER are lists of words.
  # shellcheck disable=SC2086
  srun --label --kill-on-bad-exit=0 --wait=60 "${options[@]}" $SRUN_OPTIONS $CONTAINER "$@" &
  step=$!
  # A trap ends wait before the step ends; then it is waited for again.
  while :; do
    interrupted=0 state=0
    wait "$step" || state=$?
    [ $interrupted = 1 ] || break
  done
  step=''
  [ "$cancelled" = 0 ] || leave $CANCELLED "cancelled in $name"
  # A task that is told to leave before it listens dies of USR2 (128 + 12) or TERM (128 + 15): it had nothing to save.
  case $state in
    0) ;;
    "$AGAIN" | 140 | 143) come_back "$name" ;;
    *) leave "$state" "$name ended with $state" ;;
  esac
}

come_back() { # queue this job again, as far as that is allowed; never returns
  [ ! -e "$RUN_DIR/STOP" ] || leave $STOPPED "$1 is saved, and $RUN_DIR/STOP is there: not queued again"
  [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ] ||
    leave $AGAIN "$1 is saved, but MAX_RESTARTS=$MAX_RESTARTS is reached: not queued again; sbatch goes on from there"
  say "$1 is saved: the job is queued again"
  scontrol requeue "$SLURM_JOB_ID" || leave $AGAIN "scontrol cannot queue the job again; sbatch goes on from there"
  # Slurm ends this shell; leaving by itself the job would count as failed.
  local waited=0
  while [ "$cancelled" = 0 ] && [ $waited -lt 600 ]; do
    sleep 1
    waited=$((waited + 1))
  done
  leave $AGAIN "Slurm did not take the job back"
}

refuse_if_stopped() {
  [ ! -e "$RUN_DIR/STOP" ] || leave $STOPPED "$RUN_DIR/STOP is there: $1 is not started"
}

believe() { # believe MARKER: after a node failure srun can say 0 although ranks are gone
  [ -f "$1" ] || leave $NO_MARKER "srun says all went well, but $1 is not there"
}

on_one_task=(--nodes=1 --ntasks=1)

check_nodes() { # devices, arithmetic, an all-reduce, free space; a node that fails is named and ends the job
  [ "${CHECK_NODES:-1}" = 1 ] || return 0
  run_step "check of the nodes" -- "$PYTHON" -m simcast_hpc doctor --ranks --run-dir "$RUN_DIR" \
    --min-free-gib "${MIN_FREE_GIB:-10}"
}

require_archive() { # the variable SEVIR_ROOT names an archive
  [ -n "${SEVIR_ROOT:-}" ] || leave $REFUSED "SEVIR_ROOT is not set: the folder that holds CATALOG.csv and data/vil"
  [ -f "$SEVIR_ROOT/CATALOG.csv" ] || leave $REFUSED "SEVIR_ROOT=$SEVIR_ROOT holds no CATALOG.csv"
}

stage_data() { # copy SEVIR_ROOT to LOCAL_DATA on every node, where that is set; $data_root is what training reads
  data_root=$SEVIR_ROOT
  [ -n "$LOCAL_DATA" ] || return 0
  run_step "copy of the data to $LOCAL_DATA" --ntasks-per-node=1 --ntasks="${SLURM_JOB_NUM_NODES:-1}" -- \
    bash slurm/copy_data.sh "$SEVIR_ROOT" "$LOCAL_DATA"
  data_root=$LOCAL_DATA
}

run_part() { # run_part PART ARGUMENTS...: a part of the pipeline CONFIG; prepare and verify take one process
  local part=$1 where=()
  shift
  case $part in prepare | verify) where=("${on_one_task[@]}") ;; esac
  run_step "$part" "${where[@]}" -- "$PYTHON" -m simcast_hpc pipeline "$CONFIG" --part "$part" \
    --set "run_dir=$RUN_DIR" --set "data.root=$data_root" "$@"
  case $part in
    prepare | *:rollouts) ;;
    verify) believe "$RUN_DIR/DONE.json" ;;
    *) believe "$RUN_DIR/$part/DONE.json" ;;
  esac
}

list_parts() { # list_parts ARGUMENTS...: the parts of CONFIG, one a line
  # shellcheck disable=SC2086
  srun "${on_one_task[@]}" $SRUN_OPTIONS $CONTAINER "$PYTHON" -m simcast_hpc pipeline "$CONFIG" --parts \
    --set "run_dir=$RUN_DIR" --set "data.root=$SEVIR_ROOT" "$@"
}
