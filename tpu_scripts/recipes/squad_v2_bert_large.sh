#!/usr/bin/env bash
# SQuAD v2.0, BERT large.
# Takes the settings of babysit.sh. WITH=run.sh runs it on an existing TPU instead.
#
# Command: tpu_scripts/recipes/squad_v2_bert_large.sh --project P --zone Z --bucket gs://B
# Hardware: v5litepod-8 (TPU v5e, 8 cores, 1 worker)
# Global batch: 48 = 6 per core x 8 cores x 1 accumulated
# Reference: EM 78.7, F1 81.9 (dev, single model; Devlin et al. 2019, arXiv 1810.04805, table 3)
# Ours: not measured
set -euo pipefail
export ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite RUN_ID=${RUN_ID:-squad_v2_bert_large}
exec "$(dirname -- "${BASH_SOURCE[0]}")/../${WITH:-babysit.sh}" "$@" -- \
  --model_name_or_path google-bert/bert-large-uncased \
  --dataset_name rajpurkar/squad_v2 --do_train --do_eval \
  --version_2_with_negative \
  --per_device_train_batch_size 6 --gradient_accumulation_steps 1 --per_device_eval_batch_size 16 \
  --learning_rate 3e-5 --num_train_epochs 2 --warmup_steps 0.1 --weight_decay 0.01 \
  --max_seq_length 384 --doc_stride 128 --bf16 --save_steps 200 --save_total_limit 2
