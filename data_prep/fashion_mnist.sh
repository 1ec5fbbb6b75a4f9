#!/usr/bin/env bash
# Fashion-MNIST as shards: 60,000 training images in 6 files, 10,000 test images in one.
#
#   data_prep/fashion_mnist.sh [OUT]      default OUT: data/fashion-mnist
#
# Needs the IDX files: `apt install dataset-fashion-mnist`, or any folder named by IDX_DIR.
# Takes about 2 seconds and 58 MB. Run it again after deleting OUT.
set -euo pipefail

out="${1:-data/fashion-mnist}"
idx="${IDX_DIR:-/usr/share/datasets/fashion-mnist}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

prep() { # name of the IDX pair, folder of the shards
    collage-mpi prep idx \
        --images "$idx/$1-images-idx3-ubyte.gz" \
        --labels "$idx/$1-labels-idx1-ubyte.gz" \
        --class-names-file "$here/fashion_classes.txt" \
        --source "Fashion-MNIST $2 images" \
        --out "$out/$2" --prefix "$2"
}

prep train train # the original order is already mixed: no --seed
prep t10k test
collage-mpi prep verify "$out/train" "$out/test"
