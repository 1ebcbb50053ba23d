"""featx: run a frozen pretrained network once over a folder of images; do the rest from the cache."""

__version__ = "0.1.0"
