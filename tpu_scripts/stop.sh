#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Send SIGTERM to the run on every worker and wait until it has saved a checkpoint and ended with exit status 143.
The same run.sh command resumes the run. The TPU is not deleted.'

parse 'api project zone name run-id stop-seconds workers' '' "$@"
on_worker all env "RUN_ID=$RUN_ID" bash qa_flax/tpu_scripts/worker.sh stop "$STOP_SECONDS"
