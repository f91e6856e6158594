#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"
ABOUT='Start a run as a JobSet on the current cluster of kubectl, wait until it has ended, and print the log of worker 0.
The exit status is 0 or 1. GKE restarts the run after a preemption, at most --tries times; each start resumes from
the latest checkpoint of the run id. The script deletes the JobSet when it ends, unless --keep is given. It does
not delete the node pool.'
TAKES='arguments of qa-flax run'
DESCRIPTIONS+=(
  [image]='container image with qa-flax[tpu], built from gke/Dockerfile'
  [accelerator]='value of the node label gke-tpu-accelerator'
  [chips]='TPU chips of each worker'
  [account]='Kubernetes service account with access to the bucket'
)
DEFAULTS+=([accelerator]=tpu7x [chips]=4 [account]=default [topology]=2x2x1 [wait-seconds]=86400)
DESCRIPTIONS[topology]='TPU topology: value of the node label gke-tpu-topology'
DESCRIPTIONS[wait-seconds]='seconds to wait for the end of the run'
DESCRIPTIONS[workers]='number of nodes of the slice'
DESCRIPTIONS[name]='name of the JobSet'
DESCRIPTIONS[tries]='maximum number of restarts'
DESCRIPTIONS[keep]='do not delete the JobSet when the script ends'
DESCRIPTIONS[dry-run]='print the kubectl commands and the JobSet without running them'

cluster() { # WORD...: run kubectl, or with --dry-run print the command
  if [[ $DRY_RUN ]]; then
    printf 'kubectl'
    printf ' %q' "$@"
    echo
  else
    kubectl "$@"
  fi
}

# shellcheck disable=SC2329 # called by trap
cleanup() {
  local status=$?
  trap - EXIT
  [[ $KEEP ]] || cluster delete jobset "$NAME" --ignore-not-found || status=$((status ? status : 1))
  exit "$status"
}

as_json() { # WORD...: print a JSON list of strings
  local word list=''
  for word in "$@"; do
    [[ ! $word =~ [[:cntrl:]] ]] || fail "the argument $(printf %q "$word") contains a control character"
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list#, }]"
}

fill() { # NAME VALUE: replace @NAME@ in $manifest
  [[ ${2//[^@]/} == '' || $1 == ARGUMENTS ]] || fail "$1 is $(printf %q "$2"); it must not contain @"
  manifest=${manifest//"@$1@"/"$2"}
}

parse 'name bucket run-id backend image accelerator topology chips workers account tries wait-seconds retry-seconds' 'keep' "$@"
[[ $IMAGE ]] || fail 'no image; give --image (build one from gke/Dockerfile)'
((${#ARGUMENTS[@]})) || fail 'no arguments for qa-flax run; give them after --'
manifest=$(<"$scripts/gke/jobset.yaml")
manifest=${manifest#*$'such as @NAME@.\n'} # without the line that explains the placeholders
fill NAME "$NAME"
fill TRIES "$TRIES"
fill WORKERS "$WORKERS"
fill SERVICE_ACCOUNT "$ACCOUNT"
fill ACCELERATOR "$ACCELERATOR"
fill TOPOLOGY "$TOPOLOGY"
manifest=${manifest//@IMAGE@/"$IMAGE"} # not by fill, because image digests contain @
fill CHIPS "$CHIPS"
fill BUCKET "$BUCKET"
# ARGUMENTS last, because an argument of the run may contain a placeholder such as @NAME@.
fill ARGUMENTS "$(as_json run "${ARGUMENTS[@]}" --distributed --require_backend "$BACKEND" --output_dir "$BUCKET/runs/$RUN_ID")"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[[ ! $DRY_RUN ]] || echo "$manifest"
cluster apply --filename=- <<<"$manifest"
pods="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
info "waiting for the run $RUN_ID; to follow its log: kubectl logs --follow --selector=$pods"
until=$((SECONDS + WAIT_SECONDS)) state=''
until [[ $state == Completed || $state == Failed ]]; do
  ((SECONDS < until)) || fail "the run did not end within $WAIT_SECONDS s; give a larger --wait-seconds, or --keep to leave it running" 1
  [[ ! $state ]] || sleep "$RETRY_SECONDS"
  state=$(cluster get jobset "$NAME" '--output=jsonpath={.status.terminalState}.') # with a dot, so never empty
  state=${state%.}
  [[ ! $DRY_RUN ]] || { echo "$state" && state=Completed; }
  state=${state:-running}
done
cluster logs "--selector=$pods" --tail=-1
[[ $state == Completed ]] || fail "the run $RUN_ID failed; its log is above" 1
