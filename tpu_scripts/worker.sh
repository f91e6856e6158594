#!/usr/bin/env bash
# The part of the other scripts that runs on a worker, in its home folder. Users do not call it. The other
# scripts pass RUN_ID, BUCKET, PROJECT, SECRETS and BACKEND as environment variables.
set -euo pipefail
scripts=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$HOME/qa_flax_venv
folder=$HOME/qa_flax_runs/${RUN_ID:-none}
export PATH=$HOME/.local/bin:$PATH

install() {
  # The TPU images have Python 3.10, for which pip would silently install a JAX version of 2025.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh || exit 1
  # Exit with 1, because uv fails with 2, which babysit.sh does not retry (invalid arguments).
  uv venv --allow-existing --python 3.12 "$venv" || exit 1
  uv pip install --python "$venv/bin/python" --reinstall-package qa-flax "$(dirname -- "$scripts")[tpu]" || exit 1
}

environment() { # arguments of qa-flax env
  export JAX_COMPILATION_CACHE_DIR=$BUCKET/compilation_cache
  "$venv/bin/qa-flax" env "$@"
}

is_running() { [[ -e $folder/pid && ! -e $folder/exit_status ]] && kill -0 "$(<"$folder/pid")" 2>/dev/null; }

start() { # arguments of qa-flax run
  mkdir -p "$folder"
  if is_running; then
    echo "the run $RUN_ID is already running and is not started again" >&2
    return
  fi
  rm -f "$folder/pid" "$folder/exit_status"
  # In a new session, so that the run gets no SIGHUP when the connection ends.
  setsid nohup bash "$scripts/worker.sh" work "$@" >"$folder/log" 2>&1 </dev/null &
  echo $! >"$folder/pid"
}

work() {
  local pair value pairs status=0
  trap : TERM # stop signals the whole session; this shell must live to write the status of qa-flax
  export JAX_COMPILATION_CACHE_DIR=$BUCKET/compilation_cache PYTHONUNBUFFERED=1
  IFS=, read -ra pairs <<<"$SECRETS"
  for pair in "${pairs[@]}"; do
    value=$(gcloud secrets versions access latest "--secret=${pair#*=}" "--project=$PROJECT") || status=$?
    export "${pair%%=*}=$value"
  done
  if ((status == 0)); then
    "$venv/bin/qa-flax" run "$@" --distributed --require_backend "$BACKEND" \
      --output_dir "$BUCKET/runs/$RUN_ID" || status=$?
  fi
  copy_log || echo 'the log was not copied to the bucket'
  echo "$status" >"$folder/exit_status.new"
  mv "$folder/exit_status.new" "$folder/exit_status"
}

copy_log() { # to the bucket, because the worker may be deleted soon
  local name
  name=logs/$(date -u +%Y%m%dT%H%M%S)-$(hostname)-$$.log
  case $BUCKET in
  gs://*) gcloud storage cp "$folder/log" "$BUCKET/runs/$RUN_ID/$name" ;;
  *) mkdir -p "$BUCKET/runs/$RUN_ID/logs" && cp "$folder/log" "$BUCKET/runs/$RUN_ID/$name" ;;
  esac
}

log() { cat "$folder/log"; }

show() { # BYTES: print the log after its first BYTES bytes, and follow it until the run ends
  while is_running; do sleep 0.5; done </dev/null >/dev/null 2>&1 &
  watcher=$!
  # tail also ends when the connection drops; then the watcher must end, too.
  trap 'kill "$watcher" 2>/dev/null || true' EXIT
  tail -c "+$(($1 + 1))" -s 0.2 --pid="$watcher" -f "$folder/log"
}

state() {
  local status=none
  if [[ -e $folder/exit_status ]]; then
    status=$(<"$folder/exit_status")
  elif is_running; then
    status=running
  elif [[ -e $folder/pid ]]; then
    status=lost # killed before it could write its exit status
  fi
  echo "worker $(hostname): exit status $status"
}

stop() { # SECONDS: send SIGTERM to the run and wait at most SECONDS until it has ended
  local until=$((SECONDS + $1))
  ! is_running || kill -TERM -- "-$(<"$folder/pid")"
  while is_running; do
    if ((SECONDS >= until)); then
      echo "worker $(hostname): still running after $1 s" >&2
      return 1
    fi
    sleep 0.2
  done
  state
}

command=${1:?give a command: install, environment, start, log, show, state or stop}
shift
"$command" "$@"
