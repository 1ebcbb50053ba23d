#!/usr/bin/env bash
# Recipe 1: a linear layer on DenseNet-121's features of birds, as tutorials have it, and the right way.
#
#     bash recipes/birds.sh CUB_200_2011/images
#
# The folder holds a folder for each class; train/ and val/ above them are laid together, since the tutorial
# splits by itself. Set by the environment: BACKBONE, WEIGHTS (default, random or a .pth file), EPOCHS, WAYS
# (of the published ones: train, eval, augment), and OUT, where caches and heads go.
set -euo pipefail
images=${1:-CUB_200_2011/images}
network=(--backbone "${BACKBONE:-densenet121}" --weights "${WEIGHTS:-default}")
layer=(--head linear --no-standardise --lr 1e-5 --batch-size 32 --epochs "${EPOCHS:-50}" --seed 2021)
folders=(--label-from leaf --no-split-folders)
out=${OUT:-cache/recipe-birds}
here=$(dirname "$0")
PS4=$'\n$ '
set -x

# As published: squashed, not normalised; in train mode, in eval mode, and with random crops.
for way in ${WAYS:-train eval augment}; do
    python "$here/birds_as_published.py" "$images" --way "$way" --out "$out/as-published-$way" "${network[@]}"
    featx import "$out/as-published-$way.npy" "$out/as-published-$way.csv" --root "$images" --out "$out/as-published-$way.h5"
    featx fit-head "$out/as-published-$way.h5" "${layer[@]}" --out "$out/as-published-$way.linear.safetensors"
done

# The same layer on the same map, in eval mode, with the preprocessing of the weights.
featx extract "$images" "${folders[@]}" "${network[@]}" --pool none --out "$out/flat.h5"
featx fit-head "$out/flat.h5" "${layer[@]}" --out "$out/flat.linear.safetensors"

# The right way: pooled features, and a logistic head that chooses its penalty inside the training part.
featx extract "$images" "${folders[@]}" "${network[@]}" --out "$out/pooled.h5"
featx fit-head "$out/pooled.h5" --seed 2021 --out "$out/pooled.logistic.safetensors"

featx compare "$out"/*.safetensors
