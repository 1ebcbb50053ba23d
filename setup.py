"""The part of featx that is compiled; all else about the package is in pyproject.toml."""

from setuptools import Extension, setup

resample = Extension(
    "featx._resample",
    ["featx/_resample.c"],
    extra_compile_args=["-O3"],
    py_limited_api=True,
    optional=True,  # where there is no C compiler Pillow resizes
)
setup(ext_modules=[resample], options={"bdist_wheel": {"py_limited_api": "cp311"}})
