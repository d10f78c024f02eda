vllm serve Qwen/Qwen3-0.6B \
  --served-model-name 'qwen3
