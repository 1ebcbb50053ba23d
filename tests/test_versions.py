"""Which packages are installed, and in which versions."""

from __future__ import annotations

import numpy as np
import sklearn

from featx.versions import versions_of


def test_versions_are_those_of_the_packages_that_are_installed() -> None:
    found = versions_of(["scikit-learn", "no-such-package", "numpy"])
    assert list(found.items()) == [("scikit-learn", sklearn.__version__), ("numpy", np.__version__)]
