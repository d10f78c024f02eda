docker run -d --rm --gpus all --name tgi -p127.0.0.1:8080:80 -v $PWD/data:/data \
  -e HUGGING_FACE_HUB_TOKEN=$TOKEN --shm-size 1g \
  ghcr.io/huggingface/text-generation-inference:3.3.5 \
  --model-id /data/ours --max-concurrent-requests 64 --max-input-tokens 3000 --max-total-tokens 2048 \
  --max-batch-prefill-tokens 4096 --quantize bitsandbytes-nf4 --payload-limit 4000000 --max-total-tokens 4096
