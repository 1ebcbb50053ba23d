"""featx: run a frozen pretrained network once over a folder of images; do the rest from the cache.

Everything here is imported when it is first used, so that `import featx` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from featx.auditing import audit as audit
    from featx.benching import bench as bench
    from featx.cache import verify as verify
    from featx.comparing import compare as compare
    from featx.comparing import fit_heads as fit_heads
    from featx.comparing import leaderboard as leaderboard
    from featx.converting import convert_weights as convert_weights
    from featx.cross_validation import cross_validate as cross_validate
    from featx.cross_validation import cross_validate_like as cross_validate_like
    from featx.cut import list_cuts as list_cuts
    from featx.cut import split_at as split_at
    from featx.evaluation import evaluate as evaluate
    from featx.exporting import export as export
    from featx.extraction import extract as extract
    from featx.extraction import extract_many as extract_many
    from featx.extractor import FeatureExtractor as FeatureExtractor
    from featx.featureset import FeatureSet as FeatureSet
    from featx.featureset import load as load
    from featx.few_shot import learning_curve as learning_curve
    from featx.finalising import fit_final as fit_final
    from featx.fitting import fit_head as fit_head
    from featx.fitting import fit_like as fit_like
    from featx.importing import import_features as import_features
    from featx.prediction import predict as predict
    from featx.repairing import repair as repair
    from featx.whole_network import export_network as export_network

_HOME: Final = {
    "FeatureExtractor": "featx.extractor",
    "FeatureSet": "featx.featureset",
    "audit": "featx.auditing",
    "bench": "featx.benching",
    "compare": "featx.comparing",
    "convert_weights": "featx.converting",
    "cross_validate": "featx.cross_validation",
    "cross_validate_like": "featx.cross_validation",
    "evaluate": "featx.evaluation",
    "export": "featx.exporting",
    "export_network": "featx.whole_network",
    "extract": "featx.extraction",
    "extract_many": "featx.extraction",
    "fit_final": "featx.finalising",
    "fit_head": "featx.fitting",
    "fit_heads": "featx.comparing",
    "fit_like": "featx.fitting",
    "leaderboard": "featx.comparing",
    "learning_curve": "featx.few_shot",
    "import_features": "featx.importing",
    "list_cuts": "featx.cut",
    "load": "featx.featureset",
    "predict": "featx.prediction",
    "repair": "featx.repairing",
    "split_at": "featx.cut",
    "verify": "featx.cache",
}

__all__ = ["__version__", *sorted(_HOME)]  # names of strings, all of them


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
