#!/usr/bin/env bash
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
ABOUT='Copy the latest commit of this checkout to every worker, install uv, Python 3.12 and qa-flax there, and check the
workers with qa-flax env. It is safe to repeat.'

parse 'api project zone name backend bucket workers' '' "$@"
root=$(dirname -- "$scripts")
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
if [[ ! $DRY_RUN ]]; then
  git -C "$root" archive --format=tar.gz --output="$folder/qa_flax.tar.gz" HEAD
  [[ ! $(git -C "$root" status --porcelain) ]] || info 'uncommitted changes are not copied to the workers'
fi
to_workers "$folder/qa_flax.tar.gz" qa_flax.tar.gz
on_worker all bash -c 'rm -rf qa_flax && mkdir qa_flax && tar -xzf qa_flax.tar.gz -C qa_flax'
on_worker all bash qa_flax/tpu_scripts/worker.sh install
on_worker all env "BUCKET=$BUCKET" bash qa_flax/tpu_scripts/worker.sh environment --distributed --require_backend "$BACKEND"
