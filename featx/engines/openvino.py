"""Intel's OpenVINO on the CPU: the whole network as one compiled program, several side by side.

Every image goes through on one core, and as many images at the same time as there are threads.
So no core ever waits for another, the activations of an image stay in its core's own cache, and
neither the number of threads nor an image's neighbours can change a bit of its features.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import queue
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.engines.base import CannotRunError, Work
from featx.engines.store import Prepared
from featx.resampling import Windows
from featx.versions import versions_of

_TELEMETRY: Final = "openvino_telemetry"
# Of OpenVINO's importer, and of PyTorch's exporter: what a graph cannot hold.
_REFUSALS: Final = frozenset(
    {"OpConversionFailure", "Unsupported", "UserError", "GuardOnDataDependentSymNode"}
)
_HINT: Final = {"fp32": "f32", "bf16": "bf16"}


def is_installed() -> bool:
    """Whether the package is there; it has no wheels for some platforms."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """The package, imported without its telemetry, which would tell a stranger of every import.

    It does without where ``openvino_telemetry`` cannot be imported.
    """
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    return openvino


class OpenVinoEngine:
    """Runs a network that `prepare` made, `threads` batches at the same time.

    Parameters
    ----------
    prepared : the network.
    batch_size : images per call, as it was prepared for.
    threads : cores to use, each for one call.
    precision : ``fp32`` or ``bf16``.

    Raises
    ------
    CannotRunError
        This machine does not compute in `precision`, or OpenVINO refuses the network.
    """

    name = "openvino"
    resizes = False

    def __init__(
        self, prepared: Prepared, *, batch_size: int, threads: int, precision: str = "fp32"
    ) -> None:
        openvino = _imported()
        self.batch_size = batch_size
        self.concurrency = threads
        core = openvino.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision != "fp32" and precision.upper() not in able:
            raise CannotRunError(f"OpenVINO does not compute in {precision} on this processor")
        settings = {
            "INFERENCE_PRECISION_HINT": _HINT[precision],
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the decoding processes need the cores as well
        }
        try:
            model = core.read_model(model=prepared.graph, weights=prepared.weights)
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise CannotRunError(f"OpenVINO does not compile it: {_first_line(error)}") from error
        self.feature_shape: tuple[int, ...] = tuple(compiled.output(0).shape)[1:]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, pixels: np.ndarray | Windows) -> np.ndarray:
        assert not isinstance(pixels, Windows), "it does not resize"
        assert len(pixels) == self.batch_size, f"{len(pixels)} images, not {self.batch_size}"
        request = self._requests.get()
        try:
            request.infer([pixels], share_inputs=True)
            features: np.ndarray = request.get_output_tensor(0).data.copy()
        finally:
            self._requests.put(request)
        return features


def prepare(work: Work, batch_size: int) -> Prepared:
    """The network in OpenVINO's form, for batches of one size.

    Parameters
    ----------
    work : what it is to do; the device is the CPU.
    batch_size : images per call.

    Raises
    ------
    CannotRunError
        PyTorch cannot export the network, or OpenVINO cannot take it over.
    """
    import torch

    openvino = _imported()
    whole = _whole(work)
    blank = torch.zeros((batch_size, *work.input_size, work.channels), dtype=torch.uint8)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(whole, (blank,))
            from openvino.frontend import FrontEndManager
            from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchFXPythonDecoder.from_exported_program(program)
            model = frontend.convert(frontend.load(decoder))
            model.reshape(list(blank.shape))
    except MemoryError:
        raise
    except Exception as error:
        raise CannotRunError(
            f"it cannot be converted: {_first_line(error)}", lasting=_is_of_the_network(error)
        ) from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            graph, weights = Path(folder, "network.xml"), Path(folder, "network.bin")
            openvino.save_model(model, graph, compress_to_fp16=False)
            return Prepared(graph.read_bytes(), weights.read_bytes(), {})
    except (OSError, RuntimeError) as error:  # the folder for temporary files is full, say
        raise CannotRunError(f"it cannot be prepared: {_first_line(error)}") from error


def version() -> str:
    """The installed version; `CannotRunError` where there is none."""
    found = versions_of([OpenVinoEngine.name])
    if not found:
        raise CannotRunError("OpenVINO is not installed")
    return found[OpenVinoEngine.name]


def processor() -> str:
    """The CPU's name, as OpenVINO tells it; `CannotRunError` where it cannot be imported."""
    name: str = _imported().Core().get_property("CPU", "FULL_DEVICE_NAME")
    return name


def _imported() -> Any:
    try:
        return import_openvino()
    except (ImportError, OSError) as error:
        raise CannotRunError(f"OpenVINO cannot be imported: {_first_line(error)}") from error


def _is_of_the_network(error: Exception) -> bool:
    """Whether PyTorch's exporter or OpenVINO's importer refused the network for what it is.

    Other errors, such as want of memory, may have passed by the next time.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & _REFUSALS)


def _whole(work: Work) -> Any:
    """The network with its normalisation: uint8 (n, h, w, c) to float32 features."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = work.front.eval()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.front(work.normalise(pixels.permute(0, 3, 1, 2)))
            return features.float()

    return Whole().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's talk of its own internals off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
