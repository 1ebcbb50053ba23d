#!/usr/bin/env bash
# Recipe 4: the small network of PyTorch's CIFAR-10 tutorial, trained from scratch.
#
#     bash recipes/cifar10.sh                        # reads, or downloads, CIFAR-10 into data/
#     bash recipes/cifar10.sh a-folder-with-train-and-test/
#
# Set by the environment: EPOCHS, and OUT, where the cache and the heads go.
set -euo pipefail
images=${1:-torchvision:CIFAR10}
epochs=${EPOCHS:-60}
out=${OUT:-cache/recipe-cifar10}
training=(--optimizer sgd --lr 0.02 --weight-decay 5e-4 --batch-size 64 --epochs "$epochs" --augment flip,pad)
PS4=$'\n$ '
set -x

# Cut at the input, no network runs: the cache holds pixels.
featx extract "$images" --backbone cifarnet --weights random --cut input --out "$out/pixels.h5"

# What pixels alone give, then the network, with pictures shifted and mirrored anew in every epoch.
featx fit-head "$out/pixels.h5" --out "$out/logistic-on-pixels.safetensors"
featx fit-head "$out/pixels.h5" --head tail "${training[@]}" --out "$out/cifarnet.safetensors"

featx compare "$out"/*.safetensors
