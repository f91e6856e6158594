#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"
ABOUT='Start a run as a JobSet on the cluster that kubectl is set to, show the log of its worker 0, and end with
0 or 1. GKE starts it again after a preemption, --tries times; the same run id goes on with it. When the script
ends the JobSet is deleted, unless --keep; the node pool stays.'
TAKES='arguments of qa-flax run'
MEANINGS+=(
  [image]='image with qa-flax[tpu], as of gke/Dockerfile' [accelerator]='label gke-tpu-accelerator of the nodes'
  [chips]='TPU chips of each worker' [account]='Kubernetes service account that may use the bucket'
)
DEFAULTS+=([accelerator]=tpu7x [chips]=4 [account]=default [topology]=2x2x1 [wait-seconds]=86400)
MEANINGS[topology]='chips of the slice, label gke-tpu-topology of the nodes'
MEANINGS[wait-seconds]='how long the run may take'
MEANINGS[workers]='how many nodes the slice has'
MEANINGS[dry-run]='print every kubectl command and the JobSet, and run none'

cluster() { # as kubectl
  if [[ $DRY_RUN ]]; then
    printf 'kubectl'
    printf ' %q' "$@"
    echo
  else
    kubectl "$@"
  fi
}

# shellcheck disable=SC2329 # by trap
leave() {
  local status=$?
  trap - EXIT
  [[ $KEEP ]] || cluster delete jobset "$NAME" --ignore-not-found || status=$((status ? status : 1))
  exit "$status"
}

as_json() { # WORD...: a list of strings
  local word list=''
  for word in "$@"; do
    [[ ! $word =~ [[:cntrl:]] ]] || fail "a control character is in $(printf %q "$word")"
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list#, }]"
}

fill() { # NAME VALUE: in $manifest
  [[ ${2//[^@]/} == '' || $1 == ARGUMENTS ]] || fail "@ is in $1"
  manifest=${manifest//"@$1@"/"$2"}
}

parse 'name bucket run-id backend image accelerator topology chips workers account tries wait-seconds retry-seconds' 'keep' "$@"
[[ $IMAGE ]] || fail 'no image; give --image (gke/Dockerfile makes one)'
((${#ARGUMENTS[@]})) || fail 'no arguments for qa-flax run; give them after --'
manifest=$(<"$here/gke/jobset.yaml")
manifest=${manifest#*$'@NAMED@.\n'}
fill NAME "$NAME"
fill TRIES "$TRIES"
fill WORKERS "$WORKERS"
fill SERVICE_ACCOUNT "$ACCOUNT"
fill ACCELERATOR "$ACCELERATOR"
fill TOPOLOGY "$TOPOLOGY"
manifest=${manifest//@IMAGE@/"$IMAGE"} # a digest has an @
fill CHIPS "$CHIPS"
fill BUCKET "$BUCKET"
# The last, as an argument may look like one of the others.
fill ARGUMENTS "$(as_json run "${ARGUMENTS[@]}" --distributed --require_backend "$BACKEND" --output_dir "$BUCKET/runs/$RUN_ID")"
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[[ ! $DRY_RUN ]] || echo "$manifest"
cluster apply --filename=- <<<"$manifest"
pods="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
say "waiting for the run $RUN_ID; kubectl logs --follow --selector=$pods shows it"
until=$((SECONDS + WAIT_SECONDS)) state=''
until [[ $state == Completed || $state == Failed ]]; do
  ((SECONDS < until)) || fail "the run did not end within $WAIT_SECONDS s; --keep leaves it" 1
  [[ ! $state ]] || sleep "$RETRY_SECONDS"
  state=$(cluster get jobset "$NAME" '--output=jsonpath={.status.terminalState}.') # never empty
  state=${state%.}
  [[ ! $DRY_RUN ]] || { echo "$state" && state=Completed; }
  state=${state:-running}
done
cluster logs "--selector=$pods" --tail=-1
[[ $state == Completed ]] || fail "the run $RUN_ID failed; its log is above" 1
