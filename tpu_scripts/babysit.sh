#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Run to the end on spot capacity: create, set up and run, again and again under one run id, so that each
start goes on from the last checkpoint. Exit status 2 (arguments that cannot be used) ends it at once; 1 (the
run failed on a TPU that is there) is tried twice more. At the end the TPU is deleted, unless --keep.'
TAKES='arguments of qa-flax run'

# shellcheck disable=SC2329 # by trap
leave() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  [[ ! $child ]] || kill -- "-$child" 2>/dev/null || true
  if [[ ! $keep ]]; then
    # A run that was told to stop has time to save; one that has ended is left as it is.
    if ((status > 128)) && [[ ! $DRY_RUN ]]; then "$here/stop.sh" || true; fi
    "$here/delete.sh" || status=$((status ? status : 1))
  fi
  exit "$status"
}

attempt() { # one start of the run; its exit status
  if [[ $(tpu_state) != READY || $DRY_RUN ]]; then
    "$here/delete.sh" || return
    "$here/create.sh" || return 75
  fi
  "$here/setup.sh" || return
  exec "$here/run.sh" -- "${ARGUMENTS[@]}"
}

parse 'api project zone name accelerator-type runtime-version service-account bucket run-id backend secrets tries wait-seconds stop-seconds retry-seconds machine-type topology workers image-family image-project' 'on-demand keep' "$@"
((${#ARGUMENTS[@]})) || fail 'no arguments for qa-flax run; give them after --'
((TRIES)) || fail '--tries is 0; it must be at least 1'
keep=$KEEP failed=0 child=''
export KEEP=1 SPOT=1
[[ ! $ON_DEMAND ]] || export SPOT=
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

for ((try = 1; try <= TRIES; try++)); do
  say "try $try of $TRIES of the run $RUN_ID"
  status=0
  # In the background, as bash heeds a signal only while it waits; with a process group, to end it whole.
  set -m
  attempt </dev/null &
  child=$!
  set +m
  wait "$child" || status=$?
  child=
  case $status in
  0 | 2) exit "$status" ;;
  1)
    # On a TPU that is gone any command fails, through no fault of the run.
    if [[ $(tpu_state) == READY ]] && ((++failed > 2)); then fail 'the run failed three times' 1; fi
    ;;
  130 | 129) exit "$status" ;;
  esac
  say "try $try ended with exit status $status"
  ((try == TRIES)) || sleep "$RETRY_SECONDS"
done
fail "the run $RUN_ID did not end in $TRIES tries; repeat the command to go on" "$status"
