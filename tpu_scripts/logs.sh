#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Show the log of a run, of worker 0. Of a TPU that is gone: BUCKET/runs/RUN_ID/logs has one of each worker.'

parse 'api project zone name run-id workers' 'follow' "$@"
verb=log
[[ ! $FOLLOW ]] || verb=show
on_worker 0 env "RUN_ID=$RUN_ID" bash qa_flax/tpu_scripts/worker.sh "$verb" 0
