#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Delete the TPU and its queued resource, or the instance group with its template and policy. Resources that do
not exist are skipped. Outputs stay in the bucket.'

parse 'api project zone name' '' "$@"
location=("--project=$PROJECT" "--zone=$ZONE")
status=0
if [[ $API == tpu ]]; then
  ignore_not_found compute tpus queued-resources delete "$NAME" "${location[@]}" --force --quiet || status=$?
else
  ignore_not_found compute instance-groups managed delete "$NAME" "${location[@]}" --quiet || status=$?
  ignore_not_found compute instance-templates delete "$NAME" "--project=$PROJECT" --quiet || status=$?
  ignore_not_found compute resource-policies delete "$NAME" "--project=$PROJECT" "--region=$(region)" --quiet || status=$?
fi
((status == 0)) || fail "$NAME may still exist and cost money; repeat delete.sh" "$status"
info "$NAME is deleted"
