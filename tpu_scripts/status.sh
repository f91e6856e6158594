#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Print the state of the TPU, of its queued resource and, if a run id is given, of the run on every worker.'

RUN_ID=${RUN_ID:-none}
parse 'api project zone name run-id workers' '' "$@"
state=$(tpu_state)
[[ $DRY_RUN ]] || echo "TPU $NAME: $state"
if [[ $API == tpu ]]; then
  queued=$(cloud compute tpus queued-resources describe "$NAME" "--project=$PROJECT" "--zone=$ZONE" '--format=value(state.state)' 2>/dev/null) || queued=NOT_FOUND
  [[ $DRY_RUN ]] || echo "queued resource $NAME: $queued"
fi
if [[ $state == READY && $RUN_ID != none ]]; then
  on_worker all env "RUN_ID=$RUN_ID" bash qa_flax/tpu_scripts/worker.sh state
fi
