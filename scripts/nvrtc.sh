#!/usr/bin/env bash
# Unpack NVIDIA's run-time compilers below a folder, for tests/test_nvrtc.py; no GPU is needed:
#     bash scripts/nvrtc.sh FOLDER && HESSRMT_NVRTC=FOLDER pytest tests/test_nvrtc.py
# About 260 MB to fetch. Only their files are taken: nothing is installed into an environment.
set -euo pipefail

folder=${1:?usage: bash scripts/nvrtc.sh FOLDER}
for package in nvidia-cuda-nvrtc-cu12==12.4.127 nvidia-cuda-nvrtc-cu12==12.8.93 \
    nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvrtc==13.5.37; do
    python3 -m pip install --quiet --no-deps --target "$folder/${package##*=}" "$package"
done
