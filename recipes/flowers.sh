#!/usr/bin/env bash
# Recipe 2: three ways of transfer learning side by side, as with ResNet-34 on five kinds of flowers.
#
#     bash recipes/flowers.sh flower_photos
#
# The three are one pipeline, cut at three places: a new last layer, the last block, everything. Set by the
# environment: BACKBONE, WEIGHTS (default, random or a .pth file), CUT (before the last block; `featx cuts
# BACKBONE` lists where), EPOCHS, and OUT, where caches and heads go.
set -euo pipefail
images=${1:-flower_photos}
network=(--backbone "${BACKBONE:-resnet34}" --weights "${WEIGHTS:-default}")
cut=${CUT:-layer3} epochs=${EPOCHS:-10}
out=${OUT:-cache/recipe-flowers}
PS4=$'\n$ '
set -x

# A new last layer on the features that enter the old one.
featx extract "$images" "${network[@]}" --out "$out/last-layer.h5"
featx fit-head "$out/last-layer.h5" --out "$out/last-layer.safetensors"

# The last block and a new last layer: the images went through all before it once.
featx extract "$images" "${network[@]}" --cut "$cut" --pool none --out "$out/last-block.h5"
featx fit-head "$out/last-block.h5" --head tail --epochs "$epochs" --out "$out/last-block.safetensors"

# Everything, on pixels that are cut out and mirrored anew in every epoch; test images never are.
featx extract "$images" "${network[@]}" --cut input --store-size 256 --out "$out/everything.h5"
featx fit-head "$out/everything.h5" --head tail --epochs "$epochs" --augment flip,crop --out "$out/everything.safetensors"

featx compare "$out"/*.safetensors
