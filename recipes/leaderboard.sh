#!/usr/bin/env bash
# Recipe 3: the classic networks as feature extractors, in one pass over the images, and a leaderboard.
#
#     bash recipes/leaderboard.sh birds/
#
# Nobody publishes weights of LeNet-5: it stands there with random ones, for comparison. Set by the environment:
# BACKBONES (names, between spaces), WEIGHTS (one for all, or one for each in their order: default, random or a
# .pth file), and OUT, where caches and heads go.
set -euo pipefail
images=${1:-birds/}
read -ra backbones <<<"${BACKBONES:-lenet5 alexnet vgg16 googlenet resnet50 resnext50_32x4d inception_v3 densenet121}"
read -ra weights <<<"${WEIGHTS:-random default default default default default default default}"
out=${OUT:-cache/recipe-leaderboard}
PS4=$'\n$ '
set -x

# Each image is decoded once, and every network crops and normalises it as its weights ask for.
featx extract "$images" "${backbones[@]/#/--backbone=}" "${weights[@]/#/--weights=}" --cache-dir "$out"

# A cache without a head gets a logistic one; all are tested on the same held-out images.
featx compare "$out"/*.h5
