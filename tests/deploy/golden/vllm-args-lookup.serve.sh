#!/bin/sh
# int8 of SmolLM2-135M-Instruct, artefact 0123456789abcdef for vllm: quicksilver export --to vllm-args
# sh serve.sh, or vllm serve --config vllm.yaml
#
# Not carried over, or left to you:
# - Quicksilver's gateway is not in front of it, as it isn't under `quicksilver serve` for vLLM: its grammars, limits of waiting and time, access log and recording are not there.
# - It was built and tried with vLLM on a CPU; nothing of it was tried on a GPU.
# - vLLM reads object storage with a package of its own: pip install 'vllm[runai]'.
# - vllm serve --config vllm.yaml reads no environment: serve.sh sets VLLM_NO_USAGE_STATS.
export VLLM_NO_USAGE_STATS=1
exec vllm serve s3://bucket/mine \
    --served-model-name SmolLM2-135M-Instruct \
    --dtype bfloat16 \
    --max-num-seqs 16 \
    --shutdown-timeout 8 \
    --max-num-batched-tokens 2048 \
    --enable-prefix-caching \
    --speculative-config '{"method": "ngram", "num_speculative_tokens": 5}' \
    --load-format runai_streamer
