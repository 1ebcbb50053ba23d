"""The features of recipe 1 as tutorials take them, mistakes and all, for `featx import`.

Pictures are squashed to a square and not normalised, and DenseNet's last ReLU is missing; on top
of that one of three: --way train leaves the network in train mode, so that BatchNorm uses the
statistics of the images that happen to share a batch; eval does not; augment draws a random crop
and flip of every picture, test pictures too, in eval mode.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms


class Pictures(Dataset):
    """Pixels (3, 224, 224), 0 to 1."""

    def __init__(self, files, augment):
        random = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        shape = random if augment else [transforms.Resize((224, 224))]
        self.files = files
        self.transform = transforms.Compose([*shape, transforms.ToTensor()])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as image:
            return self.transform(image.convert("RGB"))


def load(backbone, weights):
    """The convolutional part of a network of torchvision that calls it `features`."""
    if weights in ("default", "random"):
        named = "IMAGENET1K_V1" if weights == "default" else None
        return models.get_model(backbone, weights=named).features
    state = torch.load(weights, map_location="cpu", weights_only=True)
    kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    network = models.get_model(backbone)
    network.load_state_dict(kept, strict=False)
    return network.features


def main():
    """Write OUT.npy, a row an image, and OUT.csv, the image of each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", required=True, help="without an ending")
    parser.add_argument("--way", choices=("train", "eval", "augment"), default="train")
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--weights", default="default", help="default, random or a .pth file")
    asked = parser.parse_args()

    torch.manual_seed(2021)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load(asked.backbone, asked.weights).to(device).train(asked.way == "train")
    files = np.array(sorted(asked.images.rglob("*.[jp][pn]g")))
    files = files[np.random.default_rng(2021).permutation(len(files))]  # of mixed batches, as there
    rows = []
    with torch.no_grad():
        for pixels in DataLoader(Pictures(files, asked.way == "augment"), batch_size=32):
            rows.append(network(pixels.to(device)).flatten(1).cpu().numpy())
    features = np.concatenate(rows)  # all of them in memory, as there
    Path(asked.out).parent.mkdir(parents=True, exist_ok=True)
    np.save(f"{asked.out}.npy", features)
    with Path(f"{asked.out}.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label"])
        table.writerows([file.relative_to(asked.images), file.parent.name] for file in files)
    print(f"{asked.out}.npy: {len(features)} rows of {features.shape[1]} values")


if __name__ == "__main__":
    main()
