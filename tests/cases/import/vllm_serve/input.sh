#!/bin/sh
# The chat model of the search team.
set -e
export HF_TOKEN=hf_QmZ7aaaabbbbccccdddd
MODEL=Qwen/Qwen3-0.6B
PORT=${PORT:-8080}

VLLM_LOGGING_LEVEL=WARNING nohup vllm serve "$MODEL" \
    --served-model-name qwen3 default \
    --revision refs/pr/7 \
    --max_model_len=8k \
    --max-num-seqs 32 --max-num-batched-tokens 100000 \
    --no-enable-prefix-caching \
    --kv-cache-dtype fp8 \
    --gpu-memory-utilization 0.85 -tp 2 \
    --enable-auto-tool-choice --tool-call-parser hermes \
    --speculative-config '{"method": "ngram", "num_speculative_tokens": 4}' \
    --port $PORT --api-key sk-search-0123456789 \
    --seed "$SEED" --frobnicate hard > vllm.log 2>&1 &
