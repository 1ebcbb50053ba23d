#!/usr/bin/env bash
# LeNet-5 on scikit-learn's digits, from scratch: five seeds, each with a split of its own, beside logistic regression.
#
#     bash recipes/digits.sh
#
# Set by the environment: EPOCHS, SEEDS (numbers, between spaces), and OUT, where the cache, heads and figures go.
set -euo pipefail
images=${1:-sklearn:digits}
epochs=${EPOCHS:-30}
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"
out=${OUT:-cache/recipe-digits}
mkdir -p "$out"
PS4=$'\n$ '
set -x

featx extract "$images" --backbone lenet5 --weights random --cut input --out "$out/pixels.h5"
for seed in "${seeds[@]}"; do
    featx fit-head "$out/pixels.h5" --seed "$seed" --out "$out/logistic-$seed.safetensors"
    featx fit-head "$out/pixels.h5" --seed "$seed" --head tail --lr 2e-3 --epochs "$epochs" --augment pad=3 --out "$out/lenet5-$seed.safetensors"
    for head in logistic lenet5; do
        featx evaluate "$out/pixels.h5" "$out/$head-$seed.safetensors" --json >"$out/$head-$seed.json"
    done
done

set +x
python - "$out" <<'END'
import json, pathlib, statistics, sys

for head in ("logistic", "lenet5"):
    files = sorted(pathlib.Path(sys.argv[1]).glob(f"{head}-*.json"))
    found = [json.loads(file.read_text())["accuracy"]["value"] for file in files]
    print(f"{head}: {' '.join(f'{value:.3f}' for value in found)}, mean {statistics.mean(found):.4f}")
END
