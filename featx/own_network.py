"""A network of the user's own: what a function makes that was named as ``package.module:factory``.

Its module is imported only where the user has typed that name, never because a file records it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from featx.errors import HeadError, InputError
from featx.spelling import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_PREFIXES: Final = ("timm", "torchvision", "sklearn")  # what stands before a colon otherwise
_given: set[str] = set()  # names that the user gave in this process
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def is_own(name: str) -> bool:
    """Whether a name is one of ``package.module:factory``; nothing is imported.

    Examples
    --------
    >>> is_own("mynets.small:make"), is_own("timm:resnet18"), is_own("resnet18")
    (True, False, False)
    """
    return ":" in name and name.partition(":")[0] not in _PREFIXES


def trusted_name(recorded: str, given: str | None = None) -> str:
    """The name of the network to build: the one that a file records, or `given` by the user.

    A cache or head may come from a stranger, so that a name of code in it is never one to import:
    the user has to give it.

    Raises
    ------
    HeadError
        The recorded one is of somebody's own code, and none is given.

    Examples
    --------
    >>> trusted_name("resnet18"), trusted_name("nets:make", "mynets:make")
    ('resnet18', 'mynets:make')
    """
    if given is None and is_own(recorded):
        others = f" (given: {', '.join(sorted(_given))})" if _given else ""
        raise HeadError(
            f"the features were made by a network of somebody's own code, {recorded[:200]!r}, and "
            "featx imports no code because a file names it: if you know that code, give it again "
            f"with --backbone package.module:factory{others}"
        )
    return given or recorded


def note_given(name: str) -> None:
    """Note that the user gave this name, so that `build_given` may build it."""
    _given.add(name)


def name_if_given(name: str) -> str | None:
    """A recorded name, where the user gave it in this process; else None."""
    return name if name in _given else None


def build_given(name: str) -> nn.Module:
    """`build`, of a name that may stand in a file: only where the user gave it in this process.

    Raises
    ------
    HeadError
        The user did not; nothing is imported.
    InputError
        As `build`.
    """
    return build(trusted_name(name, name_if_given(name)))


def build(name: str, num_classes: int | None = None) -> nn.Module:
    """What the factory gives, on the CPU in float32; its module is imported.

    The current folder comes first among those that are searched, as with ``python -m``.

    Parameters
    ----------
    name
        ``package.module:factory``: a function or class that is called without arguments.
    num_classes
        Given to the factory by this name; only where it `takes_classes`.

    Raises
    ------
    InputError
        No such module or attribute; the module or the factory raises; what it gives is no network
        or has no layer with weights that are known.
    """
    import torch

    with _current_folder_first():
        factory = _factory(name)
        arguments = {} if num_classes is None else {"num_classes": num_classes}
        if needed := _arguments_it_needs(factory, arguments):
            raise InputError(
                f"--backbone {name}: the factory is called without arguments, but needs "
                f"{', '.join(needed)}: name a function that gives them"
            )
        try:
            network = factory(**arguments)
        except Exception as error:
            raise InputError(f"--backbone {name}: the factory failed: {_words(error)}") from error
    if not isinstance(network, torch.nn.Module):
        raise InputError(
            f"--backbone {name}: the factory gave something of type {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    if any(map(torch.nn.parameter.is_lazy, (*network.parameters(), *network.buffers()))):
        raise InputError(
            f"--backbone {name}: the network has lazy layers of unknown size; let the factory "
            "call it on one picture before it returns it"
        )
    if not any(isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) for m in network.modules()):
        raise InputError(
            f"--backbone {name}: the network has neither a Linear nor a Conv2d layer, so that it "
            "is not known where its features end"
        )
    return network.to("cpu", torch.float32)


def takes_classes(name: str) -> bool:
    """Whether the factory has a parameter ``num_classes``; its module is imported."""
    with _current_folder_first():
        return "num_classes" in _parameters(_factory(name))


def _arguments_it_needs(factory: Callable[..., Any], given: Container[str]) -> list[str]:
    """Names of the parameters without a default that are not given."""
    return [
        parameter.name
        for parameter in _parameters(factory).values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in given
    ]


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # made in C
        return {}


def code_sha256(network: nn.Module, *, constants: bool = True) -> str:
    """SHA-256 of what a traced network computes: layers with their settings, code and constants.

    The weights of a file say nothing of the code that runs them, which the user may change.

    Parameters
    ----------
    network
        A traced one.
    constants
        False where a file keeps its tensors, so that they cannot change.
    """
    digest = hashlib.sha256(_ADDRESS.sub("", str(network)).encode())
    kept = sorted(network.named_buffers()) if constants else ()  # constants are among them
    for name, tensor in kept:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.tolist()}".encode())
    return digest.hexdigest()


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()  # noqa: PTH109 (sys.path holds text)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise InputError(
            f"--backbone {name} names no function of a module; expected package.module:factory, or "
            "timm:NAME for timm's"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise InputError(
                f"--backbone {name}: there is no module {missing!r} in the current folder "
                f"({os.getcwd()}) or among those installed; expected package.module:factory, or "  # noqa: PTH109
                "timm:NAME for timm's"
            ) from error
        raise InputError(
            f"--backbone {name}: importing {module_name} failed: {_words(error)}"
        ) from error
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    callables = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    there = f"; it has {', '.join(callables[:3])}" if callables else ""
    hint = did_you_mean(attribute, callables, there)
    raise InputError(
        f"--backbone {name}: module {module_name} has no function or class {attribute!r}{hint}"
    )


def _words(error: Exception) -> str:
    """What went wrong in the user's code, and where."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first}{where}"
