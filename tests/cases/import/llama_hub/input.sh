llama-server -hf ggml-org/Qwen2.5-Coder-3B-Q8_0-GGUF:Q8_0 -hff qwen2.5-coder-3b-q8_0.gguf --port 8012 -c 0 -kvu --offline
