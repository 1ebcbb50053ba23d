"""Which axis is which: n, c, h, w followed symbolically through a traced graph.

An axis of a value is a product of atoms, each a piece of one axis of the input: a reshape splits
and joins atoms, a permutation moves them. So (n, c, h, w) -> (n, c, h*w) -> (n, h*w, c) is known
to be tokens, and attention windows cut from h and w and put back are known to be a map again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torchvision import ops

from featx.tracing import facts, operator_name

# Layers whose 4-axis input and output are (n, c, h, w) by definition.
_NCHW_LAYERS = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    ops.Conv2dNormActivation,
    ops.SqueezeExcitation,
)
_RESHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"}
_SWAPS = {"transpose", "swapaxes", "swapdims"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "norm"}
_UNKNOWN = "?"


@dataclass(frozen=True)
class Atom:
    """A piece of an axis: its base (n, c, h, w, t for joined h and w, ? unknown) and its size."""

    base: str
    size: int


Axis = tuple[Atom, ...]


@dataclass(frozen=True)
class Layout:
    """The axes of one value.

    Attributes
    ----------
    letters
        One letter per axis: n, c, h, w; t for positions (joined h and w); 1 for an axis of length
        one; ? for an unknown one.
    prefix_tokens
        Tokens at the start of the t axis that stand for no position (the class token first).
    """

    letters: str
    prefix_tokens: int = 0

    @property
    def name(self) -> str:
        """``nchw``, ``nhwc``, ``tokens`` (n, t, d), ``nct``, ``vector`` (n, d) or ``other``."""
        if len(self.letters) == 2 and self.letters[0] == "n":
            return "vector"
        known = {"nchw": "nchw", "nhwc": "nhwc", "ntc": "tokens", "nct": "nct"}
        return known.get(self.letters, "other")

    @property
    def is_map(self) -> bool:
        """Whether it has positions that can be pooled."""
        return self.name not in {"vector", "other"}

    @property
    def spatial(self) -> tuple[int, ...]:
        """Indices of the axes that pooling removes."""
        return tuple(i for i, letter in enumerate(self.letters) if letter in "hwt")


def follow_axes(module: fx.GraphModule) -> dict[fx.Node, Layout]:
    """The layout of every tensor of a graph made by `featx.tracing.trace`.

    Where an operator's effect on the axes is not known, a later layer that takes (n, c, h, w) or
    a residual sum with a known value makes them known again.
    """
    axes: dict[fx.Node, tuple[Axis, ...]] = {}
    prefixes: dict[fx.Node, int] = {}
    layouts: dict[fx.Node, Layout] = {}
    for node in module.graph.nodes:
        shape = facts(node).shape
        if shape is None:
            # A tuple of tensors (attention, chunk): its parts are taken to be laid out alike.
            source = next((n for n in node.all_input_nodes if n in axes), None)
            if source is not None and facts(node).carries:
                axes[node] = axes[source]
            continue
        found = _axes_of(node, shape, axes, module)
        if len(shape) == 4 and _letters(found) != "nhwc" and _feeds_nchw(node, module):
            found = _nchw(shape)
        axes[node] = found
        prefixes[node] = _prefix_tokens(node, _letters(found), prefixes)
        layouts[node] = Layout(_letters(found), prefixes[node])
    return layouts


def _axes_of(
    node: fx.Node,
    shape: tuple[int, ...],
    axes: dict[fx.Node, tuple[Axis, ...]],
    module: fx.GraphModule,
) -> tuple[Axis, ...]:
    if node.op == "placeholder" and len(shape) == 4:
        return _nchw(shape)
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if layer is not None and len(shape) == 4 and isinstance(layer, _NCHW_LAYERS):
        return _nchw(shape)
    sources = [n for n in node.all_input_nodes if n in axes and facts(n).carries]
    if not sources:
        return _unknown(shape)
    before = axes[sources[0]]
    name = operator_name(node, module)
    order = _permutation(node, layer, name, len(before))
    if order is not None:
        return tuple(before[i] for i in order)
    if name in _RESHAPES:
        return _reshaped(before, shape)
    if name == "getitem" and sources[0].meta["facts"].shape is not None:
        return _indexed(before, shape, node.args[1])
    if name in _REDUCTIONS and len(shape) < len(before):
        return _reduced(before, shape, node)
    return _like_an_input([axes[n] for n in sources], shape)


def _permutation(
    node: fx.Node, layer: nn.Module | None, name: str, rank: int
) -> tuple[int, ...] | None:
    if isinstance(layer, ops.Permute):
        return tuple(int(i) % rank for i in layer.dims)
    if layer is not None:
        return None
    given: Sequence[Any] = [*node.args[1:], *node.kwargs.values()]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = list(given[0])
    if not given or not all(isinstance(i, int) for i in given):
        return None
    if name == "permute":
        return tuple(i % rank for i in given)
    if name in _SWAPS and len(given) == 2:
        order = list(range(rank))
        first, second = given[0] % rank, given[1] % rank
        order[first], order[second] = order[second], order[first]
        return tuple(order)
    return None


def _reshaped(before: Sequence[Axis], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Atoms in their order, dealt out again to the new axes; split where an axis ends in one."""
    atoms = [atom for axis in before for atom in axis if atom.size != 1][::-1]
    after: list[Axis] = []
    for size in shape:
        axis: list[Atom] = []
        missing = size
        while missing > 1:
            if not atoms:
                return _unknown(shape)
            atom = atoms.pop()
            if atom.size > missing and atom.size % missing == 0:
                atoms.append(Atom(atom.base, atom.size // missing))
                atom = Atom(atom.base, missing)
            if missing % atom.size:
                return _unknown(shape)
            axis.append(atom)
            missing //= atom.size
        after.append(tuple(axis))
    return tuple(after)


def _indexed(before: Sequence[Axis], shape: tuple[int, ...], index: Any) -> tuple[Axis, ...]:
    """Axes after `value[index]`; integers remove an axis, slices keep it, None adds one."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(
        item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in items
    ):
        return _unknown(shape)
    consumed = sum(1 for item in items if item is not None and item is not Ellipsis)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(before) - consumed)
    rest = iter(before)
    after: list[Axis] = []
    for item in items:
        if item is None:
            after.append(())
            continue
        axis = next(rest)
        if isinstance(item, slice):
            after.append(axis)
    after.extend(rest)
    return _resized(after, shape) if len(after) == len(shape) else _unknown(shape)


def _reduced(before: Sequence[Axis], shape: tuple[int, ...], node: fx.Node) -> tuple[Axis, ...]:
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = [given] if isinstance(given, int) else given
    if not isinstance(dims, (list, tuple)) or not all(isinstance(dim, int) for dim in dims):
        return _unknown(shape)
    removed = {int(dim) % len(before) for dim in dims}
    after = [axis for i, axis in enumerate(before) if i not in removed]
    return _resized(after, shape) if len(after) == len(shape) else _unknown(shape)


def _like_an_input(inputs: Sequence[Sequence[Axis]], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Element-wise operators, layers and sums: the axes of the best known input of this rank."""
    same_rank = [axes for axes in inputs if len(axes) == len(shape)]
    if not same_rank:
        return _unknown(shape)
    known = [axes for axes in same_rank if _UNKNOWN not in _letters(axes)]
    return _resized((known or same_rank)[0], shape)


def _resized(axes: Sequence[Axis], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    return tuple(
        axis if math.prod(atom.size for atom in axis) == size else (Atom(_letter(axis), size),)
        for axis, size in zip(axes, shape, strict=True)
    )


def _letters(axes: Sequence[Axis]) -> str:
    return "".join(_letter(axis) for axis in axes)


def _letter(axis: Axis) -> str:
    bases = {atom.base for atom in axis}
    if not bases:
        return "1"
    if len(bases) == 1:
        return bases.pop()
    return "t" if bases <= {"h", "w", "t"} else _UNKNOWN


def _nchw(shape: tuple[int, ...]) -> tuple[Axis, ...]:
    return tuple((Atom(base, size),) for base, size in zip("nchw", shape, strict=True))


def _unknown(shape: tuple[int, ...]) -> tuple[Axis, ...]:
    # The first axis stays the batch: no classification network mixes images.
    return tuple((Atom("n" if i == 0 else _UNKNOWN, size),) for i, size in enumerate(shape))


def _feeds_nchw(node: fx.Node, module: fx.GraphModule) -> bool:
    return any(
        user.op == "call_module"
        and isinstance(module.get_submodule(str(user.target)), _NCHW_LAYERS)
        for user in node.users
    )


def _prefix_tokens(node: fx.Node, letters: str, prefixes: dict[fx.Node, int]) -> int:
    """Tokens before the positions: concatenated to them from values that are not the image's."""
    if letters != "ntc":
        return 0
    if getattr(node.target, "__name__", "") in {"cat", "concat"} and node.args:
        parts = node.args[0]
        count = 0
        for part in parts if isinstance(parts, (tuple, list)) else ():
            if not isinstance(part, fx.Node) or _n_tokens(part) is None:
                return 0
            if facts(part).carries:
                return count + prefixes.get(part, 0)
            count += _n_tokens(part) or 0
        return 0
    # Attention returns a tuple: the value before it tells. A slice has fewer tokens: none is kept.
    sources = [n for n in node.all_input_nodes if n in prefixes]
    sources = sources or [m for n in node.all_input_nodes for m in n.all_input_nodes]
    kept = [prefixes.get(n, 0) for n in sources if _n_tokens(n) == _n_tokens(node)]
    return max(kept, default=0)


def _n_tokens(node: fx.Node) -> int | None:
    shape = facts(node).shape
    return shape[1] if shape is not None and len(shape) == 3 else None
