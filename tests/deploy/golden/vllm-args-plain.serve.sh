#!/bin/sh
# int8 of SmolLM2-135M-Instruct, artefact 0123456789abcdef for vllm: quicksilver export --to vllm-args
# sh serve.sh, or vllm serve --config vllm.yaml
#
# Not carried over, or left to you:
# - Quicksilver's gateway is not in front of it, as it isn't under `quicksilver serve` for vLLM: its grammars, limits of waiting and time, access log and recording are not there.
# - It was built and tried with vLLM on a CPU; nothing of it was tried on a GPU.
# - vllm serve --config vllm.yaml reads no environment: serve.sh sets HF_HUB_OFFLINE, VLLM_NO_USAGE_STATS.
export HF_HUB_OFFLINE=1
export VLLM_NO_USAGE_STATS=1
exec vllm serve /srv/artefact \
    --served-model-name SmolLM2-135M-Instruct \
    --dtype bfloat16 \
    --max-num-seqs 8 \
    --shutdown-timeout 8 \
    --max-num-batched-tokens 512 \
    --no-enable-prefix-caching
