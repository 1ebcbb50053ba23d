"""The part of featx that is compiled; all else about the package is in pyproject.toml."""

import sysconfig
import tempfile

from setuptools import Extension, setup

# One build serves Python 3.11 and all that come after it, but for those without the GIL.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

resample = Extension(
    "featx._resample",
    ["featx/_resample.c"],
    extra_compile_args=["-O3"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    optional=True,  # where there is no C compiler Pillow resizes
)
with tempfile.TemporaryDirectory() as folder:  # ./build would keep modules that are gone
    setup(
        ext_modules=[resample],
        options={
            "build": {"build_base": folder},
            **({"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {}),
        },
    )
