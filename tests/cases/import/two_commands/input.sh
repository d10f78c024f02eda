export OMP_NUM_THREADS=8
vllm serve Qwen/Qwen3-0.6B --port 8001 &
vllm serve Qwen/Qwen3-Embedding-0.6B --runner pooling --port 8002 &
wait
