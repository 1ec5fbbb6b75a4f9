#!/usr/bin/env bash
# Your pictures, a folder a class, to shards, two networks and a finished run.
#
#   data_prep/pictures.sh PHOTOS [OUT]      default OUT: data/pictures
#
# Sizes and epochs are for a first look on a workstation's CPU: SIZE=64 EPOCHS=5 unless set.
# Run it again after a kill: finished shards are kept.
set -euo pipefail

photos="${1:?the folder that holds a folder of pictures for each class}"
out="${2:-data/pictures}"
size="${SIZE:-64}" epochs="${EPOCHS:-5}" side="${SIDE:-3}"

prep() { # 5 says that unreadable pictures were left out; they are listed beside the shards
    collage-mpi prep images "$photos" --out "$out/shards" --size "$size" --val-share 0.1 ||
        [[ $? == 5 ]]
}

train() { # single or collage, more flags
    collage-mpi train "$1" --shards "$out/shards/train" --out "$out/$1.safetensors" \
        --epochs "$epochs" "${@:2}"
}

prep
collage-mpi prep verify "$out/shards/train" "$out/shards/val"
train single --stem 48x4/2 --batch 32
train collage --side "$side" --cell-px $((size / 2)) --batch 8
collage-mpi launch -n $((side * side + 2)) -- run --shards "$out/shards/val" --side "$side" \
    --single "$out/single.safetensors" --collage "$out/collage.safetensors" --out "$out/run"
collage-mpi verify "$out/run"
