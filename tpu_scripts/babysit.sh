#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Create a spot TPU, set it up and start the run. After a preemption, repeat this until the run has finished. Each
start resumes from the latest checkpoint of the run id. Exit status 2 (invalid arguments) is not retried; 1 (the
run failed although the TPU is ready) is retried twice. The script deletes the TPU when it ends, unless --keep
is given.'
TAKES='arguments of qa-flax run'

# shellcheck disable=SC2329 # called by trap
cleanup() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  [[ ! $child ]] || kill -- "-$child" 2>/dev/null || true
  if [[ ! $keep ]]; then
    # After a signal the run may still be running: let it save a checkpoint.
    if ((status > 128)) && [[ ! $DRY_RUN ]]; then "$scripts/stop.sh" || true; fi
    "$scripts/delete.sh" || status=$((status ? status : 1))
  fi
  exit "$status"
}

attempt() { # create the TPU if necessary, set it up and start the run; returns the run's exit status
  if [[ $(tpu_state) != READY || $DRY_RUN ]]; then
    "$scripts/delete.sh" || return
    "$scripts/create.sh" || return 75
  fi
  "$scripts/setup.sh" || return
  exec "$scripts/run.sh" -- "${ARGUMENTS[@]}"
}

parse 'api project zone name accelerator-type runtime-version service-account bucket run-id backend secrets tries wait-seconds stop-seconds retry-seconds machine-type topology workers image-family image-project' 'on-demand keep' "$@"
((${#ARGUMENTS[@]})) || fail 'no arguments for qa-flax run; give them after --'
((TRIES)) || fail '--tries is 0; it must be at least 1'
keep=$KEEP failed=0 child=''
export KEEP=1 SPOT=1
[[ ! $ON_DEMAND ]] || export SPOT=
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

for ((try = 1; try <= TRIES; try++)); do
  info "try $try of $TRIES of the run $RUN_ID"
  status=0
  # In the background, because bash handles signals only while it waits; in its own process group, so that
  # cleanup can stop all of its processes.
  set -m
  attempt </dev/null &
  child=$!
  set +m
  wait "$child" || status=$?
  child=
  case $status in
  0 | 2) exit "$status" ;;
  1)
    # If the TPU has been lost, every command on it fails; that is not a failure of the run.
    if [[ $(tpu_state) == READY ]] && ((++failed > 2)); then fail 'the run failed three times' 1; fi
    ;;
  130 | 129) exit "$status" ;;
  esac
  info "try $try ended with exit status $status"
  ((try == TRIES)) || sleep "$RETRY_SECONDS"
done
fail "the run $RUN_ID did not finish in $TRIES tries; repeat the command to resume" "$status"
