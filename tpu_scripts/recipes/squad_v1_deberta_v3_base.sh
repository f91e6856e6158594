#!/usr/bin/env bash
# SQuAD v1.1, DeBERTa-v3 base.
# Takes the settings of babysit.sh. WITH=run.sh runs it on an existing TPU instead.
#
# Command: tpu_scripts/recipes/squad_v1_deberta_v3_base.sh --project P --zone Z --bucket gs://B
# Hardware: v5litepod-8 (TPU v5e, 8 cores, 1 worker)
# Global batch: 64 = 4 per core x 8 cores x 2 accumulated
# Reference: F1 93.9, EM 88.4 (dev; https://huggingface.co/microsoft/deberta-v3-base)
# Ours: not measured
set -euo pipefail
export ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite RUN_ID=${RUN_ID:-squad_v1_deberta_v3_base}
exec "$(dirname -- "${BASH_SOURCE[0]}")/../${WITH:-babysit.sh}" "$@" -- \
  --model_name_or_path microsoft/deberta-v3-base \
  --dataset_name rajpurkar/squad --do_train --do_eval \
  --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --per_device_eval_batch_size 16 \
  --learning_rate 2e-5 --num_train_epochs 3 --warmup_steps 0.1 --weight_decay 0.01 \
  --max_seq_length 384 --doc_stride 128 --bf16 --save_steps 200 --save_total_limit 2
