#!/usr/bin/env bash
# SQuAD v1.1, BERT base.
# Takes the settings of babysit.sh. WITH=run.sh runs it on an existing TPU instead.
#
# Command: tpu_scripts/recipes/squad_v1_bert_base.sh --project P --zone Z --bucket gs://B
# Hardware: v5litepod-8 (TPU v5e, 8 cores, 1 worker)
# Global batch: 64 = 8 per core x 8 cores x 1 accumulated
# Reference: EM 80.8, F1 88.5 (dev, single model; Devlin et al. 2019, arXiv 1810.04805, table 2)
# Ours: not measured
set -euo pipefail
export ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite RUN_ID=${RUN_ID:-squad_v1_bert_base}
exec "$(dirname -- "${BASH_SOURCE[0]}")/../${WITH:-babysit.sh}" "$@" -- \
  --model_name_or_path google-bert/bert-base-uncased \
  --dataset_name rajpurkar/squad --do_train --do_eval \
  --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --per_device_eval_batch_size 16 \
  --learning_rate 5e-5 --num_train_epochs 3 --warmup_steps 0.1 --weight_decay 0.01 \
  --max_seq_length 384 --doc_stride 128 --bf16 --save_steps 200 --save_total_limit 2
