#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Send SIGTERM to the run on every worker, so that it saves a checkpoint and ends with status 143, and wait
for that. The same run.sh goes on from there. The TPU stays.'

parse 'api project zone name run-id stop-seconds workers' '' "$@"
on_worker all env "RUN_ID=$RUN_ID" bash qa_flax/tpu_scripts/worker.sh stop "$STOP_SECONDS"
