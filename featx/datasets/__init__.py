"""Data sets by name, ``torchvision:CIFAR10`` and the like: many images in one file.

Every image has a path of its own, ``DATA_ROOT/torchvision:CIFAR10/train/airplane/00012``. No such
file is there: `packed` knows which bytes the path stands for, and everything that reads an image
file asks it first.
"""
