#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Start qa-flax run on every worker, show the log of worker 0, and exit with the status of the run: 143 if it was
stopped, 75 if the TPU was lost. The run continues if the connection drops. When the script ends, it stops a run
that is still running, which saves a checkpoint, and deletes the TPU, unless --keep is given.'
TAKES='arguments of qa-flax run'
LOST=75
WAIT_FOR_OTHERS=900 # seconds; as long as the processes of a run wait for each other

worker() { # NUMBER VERB WORD...
  local number=$1
  shift
  on_worker "$number" env "RUN_ID=$RUN_ID" "BUCKET=$BUCKET" "PROJECT=$PROJECT" "SECRETS=$SECRETS" \
    "BACKEND=$BACKEND" bash qa_flax/tpu_scripts/worker.sh "$@"
}

# shellcheck disable=SC2329 # called by trap
cleanup() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  [[ ! $connection ]] || kill -- "-$connection" 2>/dev/null || true
  if [[ ! $KEEP ]]; then
    [[ ! $running ]] || "$scripts/stop.sh" || info 'the run did not stop in time'
    "$scripts/delete.sh" || status=$((status ? status : 1))
  fi
  rm -f -- "$log"
  exit "$status"
}

# In the background, because bash handles signals only while it waits; in its own process group, so that
# cleanup can stop all of its processes.
show_log() {
  set -m
  { worker 0 show "$(wc -c <"$log")" | tee -a "$log"; } </dev/null &
  connection=$!
  set +m
  local status=0
  wait "$connection" || status=$?
  connection=
  return "$status"
}

reconnect() { # after a failed connection: wait before the next one, or fail if the TPU is lost
  local state
  state=$(tpu_state)
  if [[ $state != READY && $state != UNKNOWN ]] || ((++failures > 20)); then
    running=
    fail "the TPU is $state; repeat the command to resume the run from its latest checkpoint" "$LOST"
  fi
  info 'the connection failed; the run continues without it'
  sleep "$RETRY_SECONDS"
}

exit_status() { # of the whole run: an error of a worker takes precedence over 143, and 143 over 0
  local states status worst=0
  states=$(worker all state) || return
  while read -r status; do
    case $status in
    running) echo running && return ;;
    lost) status=137 ;;
    none) status=$LOST ;;
    esac
    if ((worst == 0)) || ((worst == 143 && status != 0)); then worst=$status; fi
  done < <(sed -n 's/^worker .*: exit status //p' <<<"$states")
  echo "$worst"
}

parse 'api project zone name bucket run-id backend secrets stop-seconds retry-seconds workers' 'keep' "$@"
((${#ARGUMENTS[@]})) || fail 'no arguments for qa-flax run; give them after --'
for argument in "${ARGUMENTS[@]}"; do
  [[ $argument != --output_dir* ]] || fail "--output_dir is always BUCKET/runs/RUN_ID ($BUCKET/runs/$RUN_ID); remove it, or change --bucket or --run-id"
done
log=$(mktemp)
connection='' running='' failures=0
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

running=1
worker all start "${ARGUMENTS[@]}"
until show_log; do reconnect; done
until=$((SECONDS + WAIT_FOR_OTHERS))
while :; do
  status=$(exit_status) || { reconnect && continue; }
  [[ $status == running ]] || break
  ((SECONDS < until)) || fail "some workers are still running $WAIT_FOR_OTHERS s after worker 0 ended; stop them with stop.sh" 1
  sleep 1
done
running=
[[ ! $DRY_RUN ]] || exit 0
info "the run $RUN_ID ended with exit status $status; its files are in $BUCKET/runs/$RUN_ID"
exit "$status"
