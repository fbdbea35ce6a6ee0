#!/usr/bin/env bash
# Installs nvcc and what it needs from PyPI wheels of fixed versions into .cuda/ of this
# checkout (300 MB, seconds), where build.rs finds it. No GPU, no driver, no root is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

# The versions of nvcc, crt and nvvm must be the same, and no newer than the driver of the GPUs.
wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    # Read SASS; there are none older. They share no file with the others.
    nvidia-cuda-cuobjdump==13.2.51
    nvidia-cuda-nvdisasm==13.2.51
)
site="$PWD/.cuda"
# Written last, so that an install that was cut off is done again.
stamp="$site/installed.txt"

if [ "$(cat "$stamp" 2>/dev/null)" = "${wheels[*]}" ]; then
    exit 0
fi
command -v g++ >/dev/null || echo "WARNING: nvcc calls g++, which is not on PATH" >&2

fresh="$site.$$"
trap 'rm -rf "$fresh"' EXIT
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$fresh" \
    "${wheels[@]}"
echo "${wheels[*]}" >"$fresh/installed.txt"
rm -rf "$site"
mv "$fresh" "$site"
echo "installed nvcc into $site"
