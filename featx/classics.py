"""The small networks that textbooks and tutorials teach with, of which torchvision has none.

They are as published but for what each says of itself. Nobody publishes weights of them: they are
trained from scratch, or loaded from a file of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

FAMILY: Final = "classic"


class LeNet5(nn.Module):
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, section II.B), for digits of one channel.

    With the paper's activations and pools: tanh after every layer but the last, means of 2 x 2.
    Where the paper differs: its tanh is scaled (1.7159 tanh(2x/3)), its pools have a weight and a
    bias, the second convolution sees only some of the six maps, and the outputs are distances.

    Parameters
    ----------
    num_classes : number of outputs.

    Examples
    --------
    >>> LeNet5()(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1, 32, 32) to (n, num_classes)."""
        x = self.pool(torch.tanh(self.conv1(x)))  # (n, 6, 28, 28), (n, 6, 14, 14)
        x = self.pool(torch.tanh(self.conv2(x)))  # (n, 16, 10, 10), (n, 16, 5, 5)
        x = torch.tanh(self.fc1(torch.flatten(x, 1)))  # (n, 120)
        x = torch.tanh(self.fc2(x))  # (n, 84)
        return self.fc3(x)


class CifarNet(nn.Module):
    """The network of PyTorch's tutorial "Training a Classifier", for CIFAR-10.

    Its keys are the tutorial's (``conv1``, ``conv2``, ``fc1``, ``fc2``, ``fc3``), so that what the
    tutorial saves loads as it is.

    Parameters
    ----------
    num_classes : number of outputs.

    Examples
    --------
    >>> CifarNet()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, 32, 32) to (n, num_classes)."""
        x = self.pool(torch.relu(self.conv1(x)))  # (n, 6, 28, 28), (n, 6, 14, 14)
        x = self.pool(torch.relu(self.conv2(x)))  # (n, 16, 10, 10), (n, 16, 5, 5)
        x = torch.relu(self.fc1(torch.flatten(x, 1)))  # (n, 120)
        x = torch.relu(self.fc2(x))  # (n, 84)
        return self.fc3(x)


class DenseBlock(nn.Module):
    """Convolutions each of which sees all maps before it (Huang et al. 2017), without bottlenecks.

    Every one is BatchNorm, ReLU and a 3 x 3 convolution that adds `growth` channels.

    Parameters
    ----------
    n_convs : number of convolutions.
    in_channels : channels that enter.
    growth : channels that every convolution adds.

    Attributes
    ----------
    out_channels : ``in_channels + n_convs * growth``.

    Examples
    --------
    >>> DenseBlock(2, 3, 10)(torch.zeros(4, 3, 8, 8)).shape
    torch.Size([4, 23, 8, 8])
    """

    def __init__(self, n_convs: int, in_channels: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(in_channels + i * growth),
                nn.ReLU(),
                nn.Conv2d(in_channels + i * growth, growth, 3, padding=1),
            )
            for i in range(n_convs)
        )
        self.out_channels = in_channels + n_convs * growth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, in_channels, h, w) to (n, out_channels, h, w)."""
        for conv in self.convs:
            x = torch.cat((x, conv(x)), dim=1)
        return x


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """Make what stands between two dense blocks: fewer channels, half the height and width.

    Examples
    --------
    >>> transition(23, 10)(torch.zeros(4, 23, 8, 8)).shape
    torch.Size([4, 10, 4, 4])
    """
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1),
        nn.AvgPool2d(2, 2),
    )


class DenseNetSmall(nn.Module):
    """The DenseNet of "Dive into Deep Learning" (section 8.7), for Fashion-MNIST at 96 x 96.

    Four blocks of four convolutions with a growth of 32; transitions halve the channels.

    Parameters
    ----------
    num_classes : number of outputs.

    Examples
    --------
    >>> DenseNetSmall().eval()(torch.zeros(1, 1, 96, 96)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(1, 64, 7, stride=2, padding=3),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        layers: dict[str, nn.Module] = {"stem": stem}  # (n, 64, 24, 24)
        channels = 64
        for i in range(1, 5):
            block = DenseBlock(4, channels, growth=32)
            channels = block.out_channels
            layers[f"block{i}"] = block  # 192, 224, 240, 248 channels of 24, 12, 6, 3 pixels
            if i < 4:
                layers[f"transition{i}"] = transition(channels, channels // 2)
                channels //= 2
        layers |= {"norm": nn.BatchNorm2d(channels), "relu": nn.ReLU()}  # (n, 248, 3, 3)
        self.features = nn.Sequential()
        for name, layer in layers.items():
            self.features.add_module(name, layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1, h, w), 32 x 32 or larger, to (n, num_classes)."""
        x = self.pool(self.features(x))  # (n, 248, 1, 1)
        return self.classifier(torch.flatten(x, 1))


@dataclass(frozen=True)
class Classic:
    """A network of this module, and the input that it takes.

    Attributes
    ----------
    build : number of classes to the network.
    resize, crop, mean, std : of its transform; one of `mean` and `std` for every channel.
    sizes : least and largest height and width it takes, pixels.
    why : where the transform is from, for the user.
    """

    build: Callable[[int], nn.Module]
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: tuple[int, int]
    why: str


CLASSICS: Final[dict[str, Classic]] = {
    "cifarnet": Classic(
        CifarNet, 32, 32, (0.5,) * 3, (0.5,) * 3, (32, 32), "as in PyTorch's tutorial"
    ),
    "densenet_small": Classic(
        DenseNetSmall, 96, 96, (0.0,), (1.0,), (32, 10_000), "as in Dive into Deep Learning"
    ),
    # black around 28 x 28, as LeCun et al. had it; --resize 32 leaves no border
    "lenet5": Classic(
        LeNet5, 28, 32, (0.1307,), (0.3081,), (32, 32), "the mean and deviation are MNIST's"
    ),
}
