#!/usr/bin/env bash
# SQuAD v2.0, RoBERTa base.
# Takes the settings of babysit.sh. WITH=run.sh runs it on an existing TPU instead.
#
# Command: tpu_scripts/recipes/squad_v2_roberta_base.sh --project P --zone Z --bucket gs://B
# Hardware: v5litepod-8 (TPU v5e, 8 cores, 1 worker)
# Global batch: 64 = 8 per core x 8 cores x 1 accumulated
# Reference: F1 83.7, EM 80.5 (dev; https://huggingface.co/microsoft/deberta-v3-base)
# Ours: not measured
set -euo pipefail
export ACCELERATOR_TYPE=v5litepod-8 RUNTIME_VERSION=v2-alpha-tpuv5-lite RUN_ID=${RUN_ID:-squad_v2_roberta_base}
exec "$(dirname -- "${BASH_SOURCE[0]}")/../${WITH:-babysit.sh}" "$@" -- \
  --model_name_or_path FacebookAI/roberta-base \
  --dataset_name rajpurkar/squad_v2 --do_train --do_eval \
  --version_2_with_negative \
  --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --per_device_eval_batch_size 16 \
  --learning_rate 3e-5 --num_train_epochs 2 --warmup_steps 0.1 --weight_decay 0.01 \
  --max_seq_length 384 --doc_stride 128 --bf16 --save_steps 200 --save_total_limit 2
