#!/usr/bin/env bash
# Recipe 5: the small DenseNet of "Dive into Deep Learning" (section 8.7) on Fashion-MNIST at 96 x 96, from scratch.
#
#     bash recipes/fashion.sh                                         # reads, or downloads, Fashion-MNIST into data/
#     BATCH=32 EPOCHS=4 bash recipes/fashion.sh sklearn:digits        # needs no file at all
#
# Set by the environment: EPOCHS, BATCH (images a step), and OUT, where the cache and the head go.
set -euo pipefail
images=${1:-torchvision:FashionMNIST}
epochs=${EPOCHS:-10} batch=${BATCH:-256}
out=${OUT:-cache/recipe-fashion}
as_published=(--optimizer sgd --momentum 0 --weight-decay 0 --lr 0.1 --schedule constant --warmup 0)
PS4=$'\n$ '
set -x

featx extract "$images" --backbone densenet_small --weights random --cut input --out "$out/pixels.h5"
featx fit-head "$out/pixels.h5" --head tail "${as_published[@]}" --batch-size "$batch" --epochs "$epochs" --out "$out/densenet.safetensors"
featx evaluate "$out/pixels.h5" "$out/densenet.safetensors"
