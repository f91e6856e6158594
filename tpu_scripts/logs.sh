#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Print the log of a run on worker 0. When the run ends, each worker copies its log to BUCKET/runs/RUN_ID/logs, where
it stays after the TPU is deleted.'

parse 'api project zone name run-id workers' 'follow' "$@"
verb=log
[[ ! $FOLLOW ]] || verb=show
on_worker 0 env "RUN_ID=$RUN_ID" bash qa_flax/tpu_scripts/worker.sh "$verb" 0
