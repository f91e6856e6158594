#!/usr/bin/env bash
# SQuAD v1.1, XLM-R large, evaluated on one language of XQuAD.
# Takes the settings of babysit.sh. WITH=run.sh runs it on an existing TPU instead.
#
# Command: LANGUAGE=es tpu_scripts/recipes/xquad_xlm_roberta_large.sh --project P --zone Z --bucket gs://B
# Hardware: v5litepod-16 (TPU v5e, 16 cores, 2 workers)
# Global batch: 32 = 2 per core x 16 cores x 1 accumulated
# Reference: EM 60.8, F1 76.6, mean of 11 languages (Hu et al. 2020, XTREME, arXiv 2003.11080)
# Ours: not measured
#
# Copy xquad.LANGUAGE.json from https://github.com/google-deepmind/xquad to BUCKET/data before the run. To evaluate
# another language afterwards, repeat the command with that LANGUAGE: training is already complete, so the run only
# evaluates, and it overwrites the evaluation files of the previous language.
set -euo pipefail
export ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite RUN_ID=${RUN_ID:-xquad_xlm_roberta_large}
exec "$(dirname -- "${BASH_SOURCE[0]}")/../${WITH:-babysit.sh}" "$@" -- \
  --model_name_or_path FacebookAI/xlm-roberta-large \
  --dataset_name rajpurkar/squad --do_train --do_eval \
  --validation_file "${BUCKET:?is not set}/data/xquad.${LANGUAGE:-es}.json" \
  --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --per_device_eval_batch_size 16 \
  --learning_rate 2e-5 --num_train_epochs 2 --warmup_steps 0.1 --weight_decay 0.01 \
  --max_seq_length 384 --doc_stride 128 --bf16 --save_steps 200 --save_total_limit 2
