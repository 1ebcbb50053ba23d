"""How others take features of a folder of images: one function for each way.

Each runs in a process of its own, started by `benchmarks.runs` as ``python -m benchmarks.peers
REQUEST`` with a request as JSON, and says in a file beside its features whose rows they are and how
long it took from the first image to the last row written, imports and the building of the network
left out. They import only what they use, since the time of the whole process counts as well.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

# timm's names of torchvision's networks: the same layers in the same order.
TIMM_NAMES: Final = {
    "densenet121": "densenet121.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "mobilenet_v2": "mobilenetv2_100.ra_in1k",
}
# img2vec's names. Its own "densenet121" fails on more than one image; "densenet" is that network.
IMG2VEC_NAMES: Final = {"densenet121": "densenet", "resnet50": "resnet50"}


@dataclass(frozen=True)
class Request:
    """What a peer is to do.

    Attributes
    ----------
    peer : ``script``, ``loop``, ``img2vec`` or ``timm``; ``featx`` is run by its own command.
    network, weights : torchvision's name, and a state dict's file.
    folder : class folders of images.
    out : where the features go, without an ending.
    device : ``cpu`` or ``cuda``.
    precision : ``default`` for what PyTorch does by itself, ``fp32`` for that without TF32, and
        ``amp`` for autocast to fp16.
    batch_size, threads, workers : images at a time; threads to compute with; processes to load
        images with, where a peer has any.
    same_pixels : replace a preprocessing that differs from the weights' own, and a layer that
        differs from the penultimate one, so that the features can be compared.
    options : further words for the command line of featx.
    """

    peer: str
    network: str
    weights: str
    folder: str
    out: str
    device: str = "cpu"
    precision: str = "default"
    batch_size: int = 16
    threads: int = 1
    workers: int = 0
    same_pixels: bool = False
    options: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The request as one word of a command line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Answer:
    """What a peer did: its features' file, the path of each row's image, and the seconds."""

    features: str
    paths: list[str]
    seconds: float


def unsupported(peer: str, network: str) -> str:
    """Why `peer` cannot run `network`, or nothing."""
    if peer == "img2vec" and network not in IMG2VEC_NAMES:
        return f"img2vec_pytorch has no {network}"
    if peer == "timm" and network not in TIMM_NAMES:
        return f"no network of timm's is known to be torchvision's {network}"
    return ""


def script(request: Request) -> Answer:
    """The script that everyone writes: ImageFolder, DataLoader, a hook, h5py."""
    import h5py
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from benchmarks.networks import build, last_linear, transform

    images = ImageFolder(request.folder, transform(request.network))
    loader = DataLoader(
        images,
        request.batch_size,
        num_workers=request.workers,
        pin_memory=request.device == "cuda",
    )
    model = build(request.network, request.weights).to(request.device)
    taken: list[torch.Tensor] = []
    last_linear(model).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    begun, done, out = time.perf_counter(), 0, f"{request.out}.h5"
    with h5py.File(out, "w") as file, torch.no_grad():
        for batch, _ in loader:
            with arithmetic(request):
                model(batch.to(request.device, non_blocking=True))
            rows = taken.pop().float().cpu().numpy()
            if not done:
                features = file.create_dataset("features", (len(images), rows.shape[1]), "f4")
            features[done : done + len(rows)] = rows
            done += len(rows)
    return Answer(out, [path for path, _ in images.samples], time.perf_counter() - begun)


def loop(request: Request) -> Answer:
    """The loop of the tutorials: one image at a time, a list, numpy.save."""
    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.networks import build, last_linear, transform

    preprocess = transform(request.network)
    model = build(request.network, request.weights).to(request.device)
    taken: list[torch.Tensor] = []
    last_linear(model).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    begun, features, out = time.perf_counter(), [], f"{request.out}.npy"
    paths = files(request)
    for path in paths:
        image = preprocess(Image.open(path).convert("RGB")).unsqueeze(0).to(request.device)
        with torch.no_grad(), arithmetic(request):
            model(image)
        features.append(taken.pop().float().cpu().numpy()[0])
    np.save(out, np.array(features))
    return Answer(out, paths, time.perf_counter() - begun)


def img2vec(request: Request) -> Answer:
    """img2vec_pytorch as its page shows it: lists of PIL images in, vectors out.

    It squashes images to a square and takes DenseNet's features before its last ReLU. It has no way
    to name weights; those asked for lie where `torch.hub` looks for the published ones.
    """
    import numpy as np
    import torch
    from img2vec_pytorch import Img2Vec
    from PIL import Image

    model = Img2Vec(cuda=request.device == "cuda", model=IMG2VEC_NAMES[request.network])
    begun, features, out = time.perf_counter(), [], f"{request.out}.npy"
    paths = files(request)
    for start in range(0, len(paths), request.batch_size):
        batch = [Image.open(path).convert("RGB") for path in paths[start:][: request.batch_size]]
        with arithmetic(request):
            if request.same_pixels:
                maps = model.get_vec([cropped(image, request) for image in batch], tensor=True)
                features.append(torch.relu(maps).mean((2, 3)).numpy())
            else:
                features.append(model.get_vec(batch))
    np.save(out, np.concatenate(features))
    return Answer(out, paths, time.perf_counter() - begun)


def timm(request: Request) -> Answer:
    """timm's way of inference: its loader, its network without the classifier.

    Its preprocessing is told to be that of the weights: bilinear, 256 to 224.
    """
    import numpy as np
    import timm.data
    import torch

    from benchmarks.networks import build, renamed, transform

    preset = transform(request.network)
    model = timm.create_model(TIMM_NAMES[request.network], pretrained=False, num_classes=0)
    model.load_state_dict(renamed(build(request.network, request.weights), model))
    model = model.to(request.device).eval()
    asked = {
        "interpolation": preset.interpolation.value,
        "crop_pct": preset.crop_size[0] / preset.resize_size[0],
    }
    config = timm.data.resolve_data_config(asked, model=model)
    images = timm.data.create_dataset("", root=request.folder, search_split=False)
    loader = timm.data.create_loader(
        images,
        batch_size=request.batch_size,
        num_workers=request.workers,
        device=torch.device(request.device),
        pin_memory=request.device == "cuda",
        persistent_workers=False,
        **config,
    )
    begun, features, out = time.perf_counter(), [], f"{request.out}.npy"
    with torch.no_grad():
        for batch, _ in loader:
            with arithmetic(request):
                features.append(model(batch).float().cpu().numpy())
    np.save(out, np.concatenate(features))
    paths = [str(Path(request.folder, name)) for name in images.filenames()]
    return Answer(out, paths, time.perf_counter() - begun)


def files(request: Request) -> list[str]:
    """The images, sorted by path."""
    return sorted(str(path) for path in Path(request.folder).rglob("*.*") if path.is_file())


def cropped(image: Any, request: Request) -> Any:
    """A PIL image resized and cropped as the weights ask."""
    from torchvision.transforms.v2 import functional

    from benchmarks.networks import transform

    preset = transform(request.network)
    resized = functional.resize(image, preset.resize_size, preset.interpolation)
    return functional.center_crop(resized, preset.crop_size)


def arithmetic(request: Request) -> AbstractContextManager[Any]:
    """The precision asked for, around a forward pass."""
    import torch

    return torch.autocast(request.device, torch.float16, enabled=request.precision == "amp")


PEERS: Final[dict[str, Callable[[Request], Answer]]] = {
    "script": script,
    "loop": loop,
    "img2vec": img2vec,
    "timm": timm,
}


def answer(request: Request) -> Answer:
    """Do what is asked in this process."""
    import torch

    torch.set_num_threads(request.threads)
    if request.precision == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return PEERS[request.peer](request)


if __name__ == "__main__":
    asked = Request(**json.loads(sys.argv[1]))
    Path(f"{asked.out}.json").write_text(json.dumps(asdict(answer(asked))), "utf-8")
