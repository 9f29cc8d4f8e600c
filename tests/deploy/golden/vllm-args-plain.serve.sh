#!/bin/sh
# int8 of SmolLM2-135M-Instruct, artefact 0123456789abcdef for vllm: quicksilver export --to vllm-args
# sh serve.sh, or vllm serve --config vllm.yaml
#
# Not carried over, or left to you:
# - vLLM's own server answers, as it does under `quicksilver serve`: the grammars, limits of waiting and time, access log and recording of Quicksilver's are not there.
# - It was built and tried with vLLM on a CPU; nothing of it was tried on a GPU.
# - vllm serve --config vllm.yaml reads no environment: serve.sh sets HF_HUB_OFFLINE, VLLM_NO_USAGE_STATS.
export HF_HUB_OFFLINE=1
export VLLM_NO_USAGE_STATS=1
exec vllm serve /srv/artefact \
    --served-model-name SmolLM2-135M-Instruct \
    --dtype float32 \
    --max-num-seqs 8 \
    --max-num-batched-tokens 512 \
    --no-enable-prefix-caching \
    --generation-config vllm
