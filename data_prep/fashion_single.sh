#!/usr/bin/env bash
# The recipe of the shipped single network, fashion_single.safetensors.
#
#   data_prep/fashion_single.sh [SHARDS] [OUT]     default SHARDS: data/fashion-mnist/train
#
# fashion_mnist.sh makes the shards. Took 33 minutes on two cores.
set -euo pipefail

collage-mpi train single --shards "${1:-data/fashion-mnist/train}" \
    --out "${2:-fashion_single.safetensors}" \
    --stem 48x3/1 --stages 48x1,96x2/2,192x2/2 --epochs 10 --batch 128 --seed 1 --keep last
