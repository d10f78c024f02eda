sudo docker container run -p 8000:8000 vllm/vllm-openai --model Qwen/Qwen3-0.6B
python3 -m vllm.entrypoints.cli.main serve Qwen/Qwen3-1.7B
python3 -m vllm.entrypoints.cli.main bench serve
