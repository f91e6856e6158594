#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Request a TPU and wait until it is ready. --api tpu requests a queued resource of the Cloud TPU API; --api mig
creates a managed instance group of Compute Engine, for TPU types that the Cloud TPU API does not offer, such
as TPU7x.'

create_queued_resource() {
  local state until=$((SECONDS + WAIT_SECONDS))
  cloud compute tpus queued-resources create "$NAME" "${location[@]}" "--node-id=$NAME" \
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION" \
    "--valid-until-duration=${WAIT_SECONDS}s" "${account[@]}" ${SPOT:+--spot} --async
  while :; do
    state=$(cloud compute tpus queued-resources describe "$NAME" "${location[@]}" '--format=value(state.state)')
    [[ ! $DRY_RUN ]] || state=ACTIVE
    case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED) fail "the queued resource $NAME is $state; delete.sh removes it" 1 ;;
    esac
    ((SECONDS < until)) || fail "$NAME is still $state after $WAIT_SECONDS s; delete.sh removes the request" 1
    sleep "$RETRY_SECONDS"
  done
}

create_group() {
  local policy=() model=()
  [[ $IMAGE_FAMILY ]] || fail "no image for the workers; give --image-family (to list them: gcloud compute images list --project=$IMAGE_PROJECT)"
  [[ ! $SPOT ]] || model=(--provisioning-model=SPOT --instance-termination-action=STOP)
  cloud compute instance-templates create "$NAME" "--project=$PROJECT" "--machine-type=$MACHINE_TYPE" \
    "--image-family=$IMAGE_FAMILY" "--image-project=$IMAGE_PROJECT" --maintenance-policy=TERMINATE \
    --scopes=cloud-platform "${account[@]}" "${model[@]}"
  if [[ $TOPOLOGY ]]; then
    cloud compute resource-policies create workload-policy "$NAME" "--project=$PROJECT" "--region=$(region)" \
      --type=HIGH_THROUGHPUT "--accelerator-topology=$TOPOLOGY"
    policy=("--workload-policy=projects/$PROJECT/regions/$(region)/resourcePolicies/$NAME")
  fi
  # Do not let the group replace a preempted worker: a new machine is not part of the slice. babysit.sh
  # creates the whole TPU again instead.
  cloud compute instance-groups managed create "$NAME" "${location[@]}" "--size=$WORKERS" "--template=$NAME" \
    --default-action-on-vm-failure=do-nothing "${policy[@]}"
  cloud compute instance-groups managed wait-until "$NAME" "${location[@]}" --stable "--timeout=$WAIT_SECONDS"
}

parse 'api project zone name accelerator-type runtime-version service-account wait-seconds retry-seconds machine-type topology workers image-family image-project' 'spot' "$@"
location=("--project=$PROJECT" "--zone=$ZONE")
account=()
[[ ! $SERVICE_ACCOUNT ]] || account=("--service-account=$SERVICE_ACCOUNT")
if [[ $API == tpu ]]; then create_queued_resource; else create_group; fi
info "$NAME is ready"
