#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Start qa-flax run on every worker, show the log of worker 0, and end with the exit status of the run:
143 if it was stopped, 75 if the TPU was lost. The run does not depend on the connection. When the script
ends the TPU is deleted, unless --keep; a run that is still going is first told to save.'
TAKES='arguments of qa-flax run'
LOST=75
WAIT_FOR_OTHERS=900 # seconds; as long as hosts of a run wait for each other

worker() { # NUMBER VERB WORD...
  local number=$1
  shift
  on_worker "$number" env "RUN_ID=$RUN_ID" "BUCKET=$BUCKET" "PROJECT=$PROJECT" "SECRETS=$SECRETS" \
    "BACKEND=$BACKEND" bash qa_flax/tpu_scripts/worker.sh "$@"
}

# shellcheck disable=SC2329 # by trap
leave() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  [[ ! $connection ]] || kill -- "-$connection" 2>/dev/null || true
  if [[ ! $KEEP ]]; then
    [[ ! $going ]] || "$here/stop.sh" || say 'the run did not end in time'
    "$here/delete.sh" || status=$((status ? status : 1))
  fi
  rm -f -- "$log"
  exit "$status"
}

# In the background, as bash heeds a signal only while it waits; with a process group, to end it whole.
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

connect_again() { # the connection failed: wait, or end if there is nothing to connect to
  local state
  state=$(tpu_state)
  if [[ $state != READY && $state != UNKNOWN ]] || ((++failures > 20)); then
    going=
    fail "the TPU is $state; the run goes on from its last checkpoint when it is repeated" "$LOST"
  fi
  say 'the connection failed; the run does not need it'
  sleep "$RETRY_SECONDS"
}

exit_status() { # of all workers together: what is worse than "stopped" first
  local found status worst=0
  found=$(worker all state) || return
  while read -r status; do
    case $status in
    running) echo running && return ;;
    lost) status=137 ;;
    none) status=$LOST ;;
    esac
    if ((worst == 0)) || ((worst == 143 && status != 0)); then worst=$status; fi
  done < <(sed -n 's/^worker .*: exit status //p' <<<"$found")
  echo "$worst"
}

parse 'api project zone name bucket run-id backend secrets stop-seconds retry-seconds workers' 'keep' "$@"
((${#ARGUMENTS[@]})) || fail 'no arguments for qa-flax run; give them after --'
for argument in "${ARGUMENTS[@]}"; do
  [[ $argument != --output_dir* ]] || fail "--output_dir is $BUCKET/runs/$RUN_ID, by --bucket and --run-id; leave it out"
done
log=$(mktemp)
connection='' going='' failures=0
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

going=1
worker all start "${ARGUMENTS[@]}"
until show_log; do connect_again; done
until=$((SECONDS + WAIT_FOR_OTHERS))
while :; do
  status=$(exit_status) || { connect_again && continue; }
  [[ $status == running ]] || break
  ((SECONDS < until)) || fail "after $WAIT_FOR_OTHERS s some workers still run; stop.sh stops them" 1
  sleep 1
done
going=
[[ ! $DRY_RUN ]] || exit 0
say "the run $RUN_ID ended with exit status $status; its files are in $BUCKET/runs/$RUN_ID"
exit "$status"
