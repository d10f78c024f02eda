VLLM_CPU_KVCACHE_SPACE=40 VLLM_CPU_OMP_THREADS_BIND=0-29 \
  numactl --cpunodebind=0 vllm serve --dtype bfloat16 --enforce-eager meta-llama/Llama-3.2-1B-Instruct \
  --kv-cache-dtype auto --max-model-len auto --lora-modules sql=/adapters/sql chat=/adapters/chat
