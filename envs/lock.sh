#!/bin/sh
# Makes the lock files anew from pyproject.toml: sh envs/lock.sh
# torchvision is taken out: optimum-intel asks for it and doesn't need it for language models, and beside a
# CPU build of torch it breaks imports. That is why lock files are installed with --no-deps.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
lock() { # name, extras
    python3 -m venv "$work/$1"
    "$work/$1/bin/python" -m pip install --quiet "$PWD[$2]"
    { echo "# Made by envs/lock.sh; install with --no-deps."
      "$work/$1/bin/python" -m pip freeze --all --exclude quicksilver --exclude pip --exclude torchvision |
          sed 's/+cpu$//'; } > "envs/$1.lock"
    rm -rf "$work/$1"
}
lock serve serve
lock default optimize
lock dev optimize,dev
