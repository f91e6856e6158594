#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Delete the TPU and its queued resource, or the group with its template and policy. What is gone
already is no error. Outputs stay in the bucket.'

parse 'api project zone name' '' "$@"
place=("--project=$PROJECT" "--zone=$ZONE")
status=0
if [[ $API == tpu ]]; then
  unless_absent compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet || status=$?
else
  unless_absent compute instance-groups managed delete "$NAME" "${place[@]}" --quiet || status=$?
  unless_absent compute instance-templates delete "$NAME" "--project=$PROJECT" --quiet || status=$?
  unless_absent compute resource-policies delete "$NAME" "--project=$PROJECT" "--region=$(region)" --quiet || status=$?
fi
((status == 0)) || fail "$NAME may still exist, and cost money; repeat delete.sh" "$status"
say "$NAME is deleted"
