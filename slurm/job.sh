# shellcheck shell=bash
# Functions of the batch scripts in this folder, which source it. docs/guides/slurm.md describes the variables.

INVALID=2 NO_MARKER=70 STOPPED=75 AGAIN=85 HUNG=86 INTERRUPTED=130 CANCELLED=143

say() { echo "$(date -Is) $*" >&2; }

leave() { # leave STATUS REASON...
  local state=$1
  shift
  say "$*"
  exit "$state"
}

site_settings() { # settings of the site, and defaults; variables that are set for one submission override site.env
  local name overrides=()
  for name in DATA_ROOT SEVIR_ROOT RUN_DIR CONFIG MAX_RESTARTS CHECK_NODES MIN_FREE_GIB CPU_BIND; do
    [ -z "${!name:-}" ] || overrides+=("$name=${!name}")
  done
  # SEVIR_ROOT, the name in the first release, of a submission also overrides DATA_ROOT of the site.
  [ -z "${SEVIR_ROOT:-}" ] || [ -n "${DATA_ROOT:-}" ] || overrides+=("DATA_ROOT=$SEVIR_ROOT")
  if [ -f slurm/site.env ]; then
    # shellcheck source=slurm/site.env.example
    source slurm/site.env
  fi
  [ "${#overrides[@]}" = 0 ] || export "${overrides[@]}"
  : "${PYTHON:=.venv/bin/python}" "${MAX_RESTARTS:=20}" "${LOCAL_DATA:=}" "${DATA_ROOT:=${SEVIR_ROOT:-}}"
  : "${RUN_DIR:=runs/sevir}" "${CONFIG:=configs/pipeline/sevir.yaml}" "${CPU_BIND=cores}"
  words_of CONTAINER container
  words_of SRUN_OPTIONS srun_options
  [ -z "$CPU_BIND" ] || binding=("--cpu-bind=$CPU_BIND")
  for name in MAX_RESTARTS ROLLOUT_JOBS; do
    [[ ${!name:-0} =~ ^[0-9]+$ ]] || leave $INVALID "$name=${!name} is not a number"
  done
  # YAML, which --set reads, replaces line ends within quotes by spaces: the commands and this script would use different
  # folders. The last three are the line ends of Unicode (U+0085, U+2028, U+2029).
  for name in RUN_DIR CONFIG DATA_ROOT LOCAL_DATA; do
    case ${!name:-} in
      *[[:cntrl:]]* | *$'\xc2\x85'* | *$'\xe2\x80\xa8'* | *$'\xe2\x80\xa9'*)
        leave $INVALID "$name=${!name@Q} contains a line end or another control character"
        ;;
    esac
  done
}

container=() srun_options=() binding=()

words_of() { # words_of NAME ARRAY: set ARRAY to the words of a string, without expansion, or to a copy of an array
  # shellcheck disable=SC2034 # a reference
  local -n of=$1 into=$2
  if [[ $(declare -p "$1" 2>/dev/null) == "declare -a"* ]]; then
    into=("${of[@]}")
  else
    # shellcheck disable=SC2034
    read -r -d '' -a into <<<"${of:-}" || true
  fi
}

setting() { # setting KEY PATH: print KEY=PATH for --set, which reads YAML, so that no path becomes a number or a comment
  if [[ $2 =~ ^[A-Za-z0-9._/-]*/[A-Za-z0-9._/-]*$ ]]; then
    printf '%s=%s' "$1" "$2"
  else
    printf "%s='%s'" "$1" "${2//\'/\'\'}"
  fi
}

begin_job() { # begin_job NAME: settings, environment, rendezvous of the ranks, signal handlers
  [ -n "${SLURM_JOB_ID:-}" ] || leave $INVALID "this is a batch script: sbatch slurm/$1"
  cd "${SLURM_SUBMIT_DIR:?}" || leave $INVALID "cannot change to $SLURM_SUBMIT_DIR"
  site_settings
  mkdir -p "$RUN_DIR"
  record=$RUN_DIR/.job-$SLURM_JOB_ID
  : >"$record" || leave $INVALID "RUN_DIR=$RUN_DIR cannot be written"
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
  MASTER_PORT=$(random_port)
  export MASTER_ADDR MASTER_PORT
  # srun does not inherit --cpus-per-task from sbatch since Slurm 22.05.
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  export HDF5_USE_FILE_LOCKING=FALSE PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
  step='' cancelled=0 interrupted=0 asked=0
  trap at_exit EXIT
  make_scratch
  trap forward_usr2 USR2
  trap cancel TERM
  say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST," \
    "master $MASTER_ADDR:$MASTER_PORT, commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
}

# Another process cannot know a random port before the job listens there. It is below the usual ephemeral ports.
random_port() { # print a port on which nothing listens on this node
  local port
  for _ in {1..20}; do
    port=$(shuf -i 20000-32767 -n 1)
    grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$port") [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6 || break
  done
  echo "$port"
}

# Every start of a job uses the same caches on a node, so that kernels are compiled once. Their folder is private, and its
# name, which RUN_DIR keeps, cannot be guessed. The ranks on the other nodes create it there, and every rank checks its
# owner and mode (simcast_hpc/storage/compile_caches.py). A start that is killed while it compiles an operator leaves a
# lock, on which the next one would hang, so operators of torch and DeepSpeed have a folder per start.
make_scratch() { # create the folder of caches of compiled code on the temporary disk; it is removed at the end
  scratch='' requeued=0
  [ -z "${TORCH_EXTENSIONS_DIR:-}" ] || [ -z "${TRITON_CACHE_DIR:-}" ] || [ -z "${TORCHINDUCTOR_CACHE_DIR:-}" ] || return 0
  local temporary=${TMPDIR:-/tmp}
  [ ! -f "$record.caches" ] || scratch=$temporary/$(<"$record.caches")
  if [ -z "$scratch" ] || [ -L "$scratch" ] || { [ -e "$scratch" ] && [ ! -O "$scratch" ]; }; then
    scratch=$(mktemp -d --tmpdir "simcast-$SLURM_JOB_ID-XXXXXXXXXX") || leave $INVALID "cannot create a temporary folder"
    (umask 077 && basename "$scratch" >"$record.caches")
  fi
  [ -d "$scratch" ] || (umask 077 && mkdir -- "$scratch")
  export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions-${SLURM_RESTART_COUNT:-0}}
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton_cache}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor_cache}
}

at_exit() { # remove what the job wrote for itself, unless it starts again
  rm -f -- "$record" "$record.errors"
  [ "$requeued" = 1 ] || remove_scratch
}

remove_scratch() { # remove it on all nodes; a cancelled job can start no step, so it remains on its other nodes
  [ -n "$scratch" ] || return 0
  rm -f -- "$record.caches"
  if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] && [ "$cancelled" = 0 ]; then
    timeout 60 srun --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" rm -rf -- "$scratch" ||
      say "$scratch may remain on a node"
  fi
  rm -rf -- "$scratch"
  scratch=''
}

# Slurm sends USR2 to this shell before the time limit; srun forwards it to every task, which saves and exits.
forward_usr2() {
  interrupted=1 asked=1
  say "USR2: the tasks save and exit"
  [ -z "$step" ] || kill -USR2 "$step" 2>/dev/null || true
}

# scancel sends TERM to this shell and to the tasks; a preemption only to the tasks. A cancelled job is not requeued.
cancel() {
  interrupted=1 cancelled=1
  [ -z "$step" ] || kill -TERM "$step" 2>/dev/null || true
}

run_step() { # run_step NAME SRUN_OPTION... -- COMMAND...: run a job step to its end; sets $state to its status
  local name=$1 options=()
  shift
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  reject_if_stopped "$name"
  [ "$cancelled" = 0 ] || leave $CANCELLED "cancelled before $name"
  [ "$asked" = 0 ] || requeue_job "everything before $name is saved"
  say "$name"
  # A rank that exits with 85 must not end the others while they save; after a crash they are ended within a minute.
  # srun names the node of a failed task on stderr.
  srun --label --kill-on-bad-exit=0 --wait=60 "${binding[@]}" "${options[@]}" "${srun_options[@]}" "${container[@]}" "$@" \
    2> >(tee >(grep --line-buffered '^srun: error: ' >"$record.errors") >&2) &
  step=$!
  # A trap interrupts wait before the step ends; then wait again.
  while :; do
    interrupted=0 state=0
    wait "$step" || state=$?
    [ $interrupted = 1 ] || break
  done
  step=''
  [ "$cancelled" = 0 ] || leave $CANCELLED "cancelled in $name"
  # A signal before the task has installed its handler ends it with 128 + 12 (USR2) or 128 + 15 (TERM): nothing to save.
  case $state in
    0) ;;
    "$AGAIN" | 140 | 143) requeue_job "$name is saved" ;;
    *) requeue_after_failure "$name" ;;
  esac
}

# A crash, a hang or a lost node is repeated only if this start made progress, so an error that always occurs at the same
# step ends the job at its second occurrence.
requeue_after_failure() { # requeue_after_failure NAME: requeue the job that failed with $state, or leave
  local node=''
  case $state in "$INVALID" | "$STOPPED" | "$INTERRUPTED") leave "$state" "$1 ended with $state" ;; esac
  made_progress || leave "$state" "$1 ended with $state, and this start completed no checkpoint or stage: not requeued"
  case $state in "$HUNG" | 13[4-9]) node=$(failed_node) ;; esac
  say "$1 ended with $state"
  requeue_job "$1 failed, but this start completed a checkpoint or stage" "$state" "$node"
}

made_progress() { # whether a checkpoint or a complete stage is newer than the start of this job
  [ -n "$(find "$RUN_DIR" \( -path '*/checkpoints/step-*/manifest.json' -o -name DONE.json \) -newer "$record" \
    -print -quit)" ]
}

# Tasks that wait for a lost one end by themselves, with a status; a crash or srun ends the lost one by a signal.
failed_node() { # print the node of the first task that a signal ended, if there are several nodes
  [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] || return 0
  sleep 1 # grep writes what it has read
  sed -nE '/: Exited with/d; s/^srun: error: ([^ :]+): tasks? [^:]*: .*/\1/p' "$record.errors" | sed -n 1p
}

# Requeue this job without NODE, or leave with STATUS (default: 85) if a limit is reached. Does not return.
requeue_job() { # requeue_job REASON [STATUS [NODE]]
  [ ! -e "$RUN_DIR/STOP" ] || leave $STOPPED "$1, but $RUN_DIR/STOP exists: not requeued"
  [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ] ||
    leave "${2:-$AGAIN}" "$1, but MAX_RESTARTS=$MAX_RESTARTS is reached: not requeued; sbatch resumes it"
  local waited=0 excluded=''
  [ -z "${3:-}" ] || excluded=$(excluded_with "$3")
  say "$1: the job is requeued"
  scontrol requeue "$SLURM_JOB_ID" || leave $AGAIN "scontrol requeue failed; sbatch resumes the job"
  requeued=1
  # Slurm changes the nodes of pending jobs only. It now sends TERM to this shell and its children, KILL after KillWait.
  while [ -n "$excluded" ] && [ $waited -lt 5 ]; do
    ! scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$excluded" || excluded=''
    waited=$((waited + 1))
  done
  # Slurm ends this shell; if it exited by itself, the job would count as failed.
  while [ "$cancelled" = 0 ] && [ $waited -lt 600 ]; do
    sleep 1
    waited=$((waited + 1))
  done
  [ "$cancelled" = 0 ] || leave $AGAIN "Slurm ends this start of the job"
  leave $AGAIN "Slurm did not requeue the job"
}

excluded_with() { # excluded_with NODE: print the nodes to exclude, if the partition has enough others
  local excluded others
  excluded=$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed -nE 's/.* ExcNodeList=([^ ]*).*/\1/p')
  case $excluded in '' | '(null)') excluded=$1 ;; *) excluded=$excluded,$1 ;; esac
  others=$(sinfo --noheader --Node --format=%N --partition="$SLURM_JOB_PARTITION" | sort -u |
    grep -cvxF -f <(scontrol show hostnames "$excluded")) || true
  if [ "${others:-0}" -ge "${SLURM_JOB_NUM_NODES:-1}" ]; then
    say "the job does not start on $excluded again"
    echo "$excluded"
  else
    say "node $1 is not excluded: partition $SLURM_JOB_PARTITION has only ${others:-0} nodes without $excluded"
  fi
}

reject_if_stopped() {
  [ ! -e "$RUN_DIR/STOP" ] || leave $STOPPED "$RUN_DIR/STOP exists: $1 is not started"
}

require_marker() { # require_marker FILE: after a node failure srun can return 0 although ranks were lost
  [ -f "$1" ] || leave $NO_MARKER "srun returned 0, but $1 does not exist"
}

on_one_task=(--nodes=1 --ntasks=1)

check_nodes() { # run simcast doctor on all nodes; an error ends the job
  [ "${CHECK_NODES:-1}" = 1 ] || return 0
  run_step "check of the nodes" -- "$PYTHON" -m simcast_hpc doctor --ranks --run-dir "$RUN_DIR" \
    --min-free-gib "${MIN_FREE_GIB:-10}"
}

require_data() { # require that DATA_ROOT is an archive, prepared shards or an imported folder
  [ -n "$DATA_ROOT" ] ||
    leave $INVALID "DATA_ROOT is not set; it is the folder of prepared or imported data, or of CATALOG.csv and data/vil"
  [ -f "$DATA_ROOT/CATALOG.csv" ] || [ -f "$DATA_ROOT/manifest.json" ] ||
    leave $INVALID "DATA_ROOT=$DATA_ROOT contains neither CATALOG.csv nor prepared shards (manifest.json)"
}

stage_data() { # copy DATA_ROOT to LOCAL_DATA on every node if it is set; sets $data_root, which training reads
  data_root=$DATA_ROOT
  [ -n "$LOCAL_DATA" ] || return 0
  local copy=("$PYTHON" -m simcast_hpc.data.archive_copy) target
  target=$(on_first_node "${copy[@]}" where "$DATA_ROOT" "$LOCAL_DATA") && [ -n "$target" ] ||
    leave $INVALID "LOCAL_DATA=$LOCAL_DATA cannot be used, see the error above"
  run_step "copy of the data to $target" --ntasks-per-node=1 --ntasks="${SLURM_JOB_NUM_NODES:-1}" -- \
    "${copy[@]}" copy "$DATA_ROOT" "$target"
  data_root=$target
}

run_part() { # run_part PART ARGUMENTS...: run a part of the pipeline CONFIG; prepare uses one process
  local part=$1 where=()
  shift
  case $part in prepare) where=("${on_one_task[@]}") ;; esac
  run_step "$part" "${where[@]}" -- "$PYTHON" -m simcast_hpc pipeline "$CONFIG" --part "$part" \
    --set "$(setting run_dir "$RUN_DIR")" --set "$(setting data.root "$data_root")" "$@"
  case $part in
    prepare | *:rollouts) ;;
    verify) require_marker "$RUN_DIR/DONE.json" ;;
    *) require_marker "$RUN_DIR/$part/DONE.json" ;;
  esac
}

on_first_node() { # on_first_node COMMAND...: run a command as one task, in the container if there is one
  srun "${on_one_task[@]}" "${srun_options[@]}" "${container[@]}" "$@"
}

read_parts() { # read_parts COMMAND...: set the array $parts to the lines that simcast pipeline --parts prints
  local lines part
  lines=$("$@") || leave $INVALID "CONFIG=$CONFIG is invalid, see the error above"
  mapfile -t parts <<<"$lines"
  for part in "${parts[@]}"; do
    [[ $part =~ ^[A-Za-z0-9][A-Za-z0-9._-]*(:[a-z]+)?$ ]] || leave $INVALID "'$part' is not the name of a part of $CONFIG"
  done
}
