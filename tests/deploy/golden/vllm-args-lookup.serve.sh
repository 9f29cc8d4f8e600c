#!/bin/sh
# int8 of SmolLM2-135M-Instruct, artefact 0123456789abcdef for vllm: quicksilver export --to vllm-args
# sh serve.sh, or vllm serve --config vllm.yaml
#
# Not carried over, or left to you:
# - vLLM's own server answers, as it does under `quicksilver serve`: the grammars, limits of waiting and time, access log and recording of Quicksilver's are not there.
# - It was built and tried with vLLM on a CPU; nothing of it was tried on a GPU.
# - vLLM reads object storage with a package of its own: pip install 'vllm[runai]'.
# - vllm serve --config vllm.yaml reads no environment: serve.sh sets VLLM_NO_USAGE_STATS.
export VLLM_NO_USAGE_STATS=1
exec vllm serve s3://bucket/mine \
    --served-model-name SmolLM2-135M-Instruct \
    --dtype float32 \
    --max-num-seqs 16 \
    --max-num-batched-tokens 2048 \
    --enable-prefix-caching \
    --generation-config vllm \
    --speculative-config '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 1}' \
    --load-format runai_streamer
