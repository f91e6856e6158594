#!/usr/bin/env bash
# Fine-tune BERT on your own questions on a TPU v5e with 8 cores, and delete the TPU when it has ended.
#
#   export PROJECT=my-project ZONE=us-west4-a BUCKET=gs://my-bucket/qa   # a bucket in the region of the TPU
#   examples/tpu.sh train-v1.1.json dev-v1.1.json --dry-run              # print the commands
#   examples/tpu.sh train-v1.1.json dev-v1.1.json
#
# The files go to the bucket. babysit.sh creates a spot TPU, installs qa_flax, runs, and repeats that after a
# preemption from the latest checkpoint. Model, answers and metrics are then in $BUCKET/runs/own-questions.
set -euo pipefail

if (($# < 2)); then
  echo 'usage: examples/tpu.sh TRAIN_FILE VALIDATION_FILE [arguments of babysit.sh, such as --dry-run]' >&2
  exit 2
fi
: "${PROJECT:?set it to your Google Cloud project}" "${ZONE:?such as us-west4-a}" "${BUCKET:?such as gs://my-bucket/qa}"
train=$1 validation=$2
shift 2
export ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite RUN_ID=${RUN_ID:-own-questions}
data=$BUCKET/data
for file in "$train" "$validation"; do
  [[ -f $file ]] || { echo "examples/tpu.sh: there is no file $file" >&2; exit 2; }
  if [[ " $* " == *' --dry-run '* ]]; then
    printf 'gcloud storage cp %q %q\n' "$file" "$data/"
  else
    gcloud storage cp "$file" "$data/"
  fi
done
exec "$(dirname -- "${BASH_SOURCE[0]}")/../tpu_scripts/babysit.sh" "$@" -- \
  --model_name_or_path google-bert/bert-base-uncased \
  --train_file "$data/$(basename -- "$train")" --validation_file "$data/$(basename -- "$validation")" \
  --do_train --do_eval --num_train_epochs 3 --learning_rate 5e-5 --warmup_steps 0.1 \
  --per_device_train_batch_size 8 --per_device_eval_batch_size 16 --bf16 --save_steps 200 --save_total_limit 2
