ARGS=(--model a/b
vllm serve "${ARGS[@]}"
