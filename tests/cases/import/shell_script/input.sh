#!/bin/bash
MODEL=Qwen/Qwen3-0.6B
FILE=/models/qwen3.gguf
TAG=ours:latest
: "${LEVEL:=info}"
cat > /etc/motd <<'END'
Don't stop this: it's serving.
END
ARGS=(
  --served-model-name "${MODEL##*/}" "${FILE%.gguf}" "${TAG%%:*}"  # three names
  --max-model-len "${LENGTH:-4096}"
)
ARGS+=(--port 8001)
SIZE="--max-num-seqs 8"
vllm serve "$MODEL" "${ARGS[@]}" $SIZE --revision "${MODEL:0:3}" --chat-template "${MODEL:+x}" --dtype "${MODEL/Qwen/x}" \
  --tokenizer "$(curl -u admin:hunter2hunter2 http://tokenizers)" --download-dir `mktemp -d`
bash -s <<-SCRIPT
	vllm serve $MODEL --served-model-name inside --port 8001
	SCRIPT
