LLAMA_ARG_HOST=0.0.0.0 ./build/bin/llama-server -m models/qwen3-0.6b-q8_0.gguf --alias qwen3,default -c 16384 -np 4 -ngl 99 -fa on \
  -ctk q8_0 -ctv q8_0 -t 8 -b 1024 -ub 512 --jinja --metrics --temp 0.7 -n -1 --api-key "one-long-key,another-key" --cache-reuse 256 --no-webui
