#!/usr/bin/env bash
# What the other scripts do on a worker, in its home folder. RUN_ID, BUCKET, PROJECT, SECRETS and BACKEND
# come by the environment. Not for people.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$HOME/qa_flax_venv
folder=$HOME/qa_flax_runs/${RUN_ID:-none}
export PATH=$HOME/.local/bin:$PATH

install() {
  # The images carry Python 3.10, for which pip finds a JAX of 2025 and says nothing.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh || exit 1
  # uv fails with 2, which babysit.sh takes for arguments that cannot be used.
  uv venv --allow-existing --python 3.12 "$venv" || exit 1
  uv pip install --python "$venv/bin/python" --reinstall-package qa-flax "$(dirname -- "$here")[tpu]" || exit 1
}

environment() { # arguments of qa-flax env
  export JAX_COMPILATION_CACHE_DIR=$BUCKET/compilation_cache
  "$venv/bin/qa-flax" env "$@"
}

is_running() { [[ -e $folder/pid && ! -e $folder/exit_status ]] && kill -0 "$(<"$folder/pid")" 2>/dev/null; }

start() { # arguments of qa-flax run
  mkdir -p "$folder"
  if is_running; then
    echo "the run $RUN_ID is going already: this start only follows it" >&2
    return
  fi
  rm -f "$folder/pid" "$folder/exit_status"
  # A session of its own: the end of the connection is no signal to it.
  setsid nohup bash "$here/worker.sh" work "$@" >"$folder/log" 2>&1 </dev/null &
  echo $! >"$folder/pid"
}

work() {
  local pair value pairs status=0
  trap : TERM # stop sends it to the whole session; what counts is the status of qa-flax
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
  keep_log || echo 'the log was not copied to the bucket'
  echo "$status" >"$folder/exit_status.new"
  mv "$folder/exit_status.new" "$folder/exit_status"
}

keep_log() { # in the bucket: the worker may be gone soon
  local name
  name=logs/$(date -u +%Y%m%dT%H%M%S)-$(hostname)-$$.log
  case $BUCKET in
  gs://*) gcloud storage cp "$folder/log" "$BUCKET/runs/$RUN_ID/$name" ;;
  *) mkdir -p "$BUCKET/runs/$RUN_ID/logs" && cp "$folder/log" "$BUCKET/runs/$RUN_ID/$name" ;;
  esac
}

log() { cat "$folder/log"; }

show() { # BYTES: the log from there, until the run ends
  while is_running; do sleep 0.5; done </dev/null >/dev/null 2>&1 &
  watcher=$!
  # tail ends with the connection, too; nothing is left then.
  trap 'kill "$watcher" 2>/dev/null || true' EXIT
  tail -c "+$(($1 + 1))" -s 0.2 --pid="$watcher" -f "$folder/log"
}

state() {
  local found=none
  if [[ -e $folder/exit_status ]]; then
    found=$(<"$folder/exit_status")
  elif is_running; then
    found=running
  elif [[ -e $folder/pid ]]; then
    found=lost # killed with no time to say so
  fi
  echo "worker $(hostname): exit status $found"
}

stop() { # SECONDS to wait
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

verb=${1:?a verb is needed: install, environment, start, log, show, state or stop}
shift
"$verb" "$@"
