"""Record the gates of every attention module in a network during its forward passes."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError, nearest
from cbam.nn import CBAM, AttentionModule
from cbam.nn.base import Gate
from cbam.nn.foreign import ForeignAttention
from cbam.nn.registry import describe

_lock = threading.Lock()
_eager_blocks = 0  # of all threads
_eager_stance: Any = None


class Gates(NamedTuple):
    """The gates of one call, in float32 (float64 for float64 maps), on the map's device, without a graph.

    Attributes:
        channel: (N, C), the factor of each channel; None where the module has no channel gate.
        spatial: (N, 1, H, W), the factor of each location; None where it has no spatial gate. Of signals (N, 1, L), of
            volumes (N, 1, D, H, W).
    """

    channel: Tensor | None
    spatial: Tensor | None


class AttentionMaps(Mapping[str, Gates]):
    """The recorded gates by site, in the order of the network's modules; a site that did not run is not there.

    `maps[site]` are the gates of the site's last call, `maps.calls(site)` those of all calls.

    Attributes:
        without_gates: sites whose attention has no gates, or does not tell them.
    """

    def __init__(self, sites: list[str], without_gates: tuple[str, ...]):
        self.without_gates = without_gates
        self._calls: dict[str, tuple[list[Tensor], list[Tensor]]] = {site: ([], []) for site in sites}

    def calls(self, site: str) -> list[Gates]:
        """Return the gates of every call of a site, in order: a head may run once for each level of a pyramid."""
        if site not in self:
            close = nearest(site, self)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise KeyError(
                f"no gates of {site!r} were recorded.{hint} Recorded: {', '.join(self) or 'none'}."
            )
        return [Gates(*call) for call in zip_longest(*self._calls[site])]

    def add(self, site: str, channel: Tensor | None, spatial: Tensor | None) -> None:
        """Add the gates of a call, or one of them where each runs apart."""
        for gates, gate in zip(self._calls[site], (channel, spatial), strict=True):
            if gate is not None:
                gates.append(gate)

    def __getitem__(self, site: str) -> Gates:
        return self.calls(site)[-1]

    def __contains__(self, site: object) -> bool:
        return site in self._calls and any(self._calls[site])

    def __iter__(self) -> Iterator[str]:
        return (site for site in self._calls if site in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        lines = [
            f"{site}: channel {_shape(gates.channel)}, spatial {_shape(gates.spatial)}"
            for site, gates in self.items()
        ]
        return "\n".join(["attention maps", *(f"  {line}" for line in lines or ["nothing recorded"])])


@contextlib.contextmanager
def attention_maps(model: nn.Module) -> Iterator[AttentionMaps]:
    """Record what the gates of a network's attention do in the forward passes inside a `with` block.

    Outputs, gradients, modes and hooks stay as they are, bit for bit, with every backend, and the gates are those that
    the forward pass computed. Compiled code runs eagerly inside the block, which a warning says. Only forward passes of
    this thread count, and none of copies that are made of the network meanwhile. Blocks may be nested. All calls are
    kept until the result is dropped: in a loop over batches open a block for each of them. Functions under
    `torch.func` and traced calls are not recorded.

    Args:
        model: with attached attention, or with modules such as `cbam.CBAM` in it.

    Yields:
        Gates by site, see `AttentionMaps`: the path of the module that attention is attached to, otherwise the path of
        the attention module itself. In the parallel arrangement of CBAM, where one sigmoid takes the sum of both
        parts, each gate is the sigmoid of its part alone.

    Raises:
        CBAMError: the model has no attention, or none that tells its gates.

    >>> from torchvision.models import resnet18
    >>> from cbam import attach
    >>> model = resnet18().eval()
    >>> _ = attach(model)
    >>> with attention_maps(model) as maps:
    ...     _ = model(torch.rand(2, 3, 64, 64))
    >>> maps["layer1.0.bn2"].channel.shape, maps["layer1.0.bn2"].spatial.shape
    (torch.Size([2, 64]), torch.Size([2, 1, 16, 16]))
    """
    sites, silent = _sites(model)
    if not sites:
        raise CBAMError(
            f"{type(model).__name__} has no attention module to record: cbam.attach(model) adds it."
            if not silent
            else f"the attention of {type(model).__name__} does not tell its gates, the first at {silent[0]!r}. Give"
            " register_attention the function that does: gates=..."
        )
    maps = AttentionMaps(list(sites), silent)
    notice = _CompiledNotice()
    own: list[tuple[AttentionModule, Any]] = []
    try:
        with _eagerly():
            for site, (parts, gates) in sites.items():
                listener = _Listener(maps, site, gates, parts[0].dims, notice)
                for part in parts:
                    _listen(part, listener)
                    own.append((part, listener))
            yield maps
    finally:
        for part, listener in own:
            _stop(part, listener)


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Run compiled code eagerly: torch's switch is the process's, so the last block to end turns it back."""
    global _eager_blocks, _eager_stance
    if "torch._dynamo" not in sys.modules:  # importing it takes a second; without it nothing is compiled
        yield
        return
    with _lock:
        if not _eager_blocks:
            _eager_stance = torch.compiler.set_stance("force_eager")
        _eager_blocks += 1
    try:
        yield
    finally:
        with _lock:
            _eager_blocks -= 1
            if not _eager_blocks:
                _eager_stance.__exit__(None, None, None)


def sites_with_gates(model: nn.Module) -> list[str]:
    """Return the sites that `attention_maps` records in a model.

    >>> sites_with_gates(nn.Sequential(nn.ReLU(), CBAM(8)))
    ['1']
    """
    return list(_sites(model)[0])


class _Listener:
    """Adds the gates of one site's calls in the thread that made it."""

    def __init__(
        self,
        maps: AttentionMaps,
        site: str,
        gates: Callable[[Tensor], Any] | None,
        dims: int,
        notice: _CompiledNotice,
    ):
        self.maps, self.site, self.gates, self.dims, self.notice = maps, site, gates, dims, notice
        self.thread = threading.get_ident()

    def __call__(self, x: Tensor, channel: Tensor | None, spatial: Tensor | None) -> None:
        if threading.get_ident() != self.thread:
            return
        self.notice.give_once()
        if self.gates is not None:
            with torch.no_grad():
                channel, spatial = _told(self.gates(x), x, self.site, self.dims)
        self.maps.add(self.site, channel, spatial)


class _CompiledNotice:
    """Warns once that compiled code runs eagerly."""

    def __init__(self) -> None:
        self.due = "torch._dynamo" in sys.modules

    def give_once(self) -> None:
        if not self.due:
            return
        self.due = False
        frame: Any = sys._getframe()
        while frame is not None:
            code = frame.f_code
            if code.co_name == "compile_wrapper" and code.co_filename.endswith("eval_frame.py"):
                warnings.warn(
                    "the compiled network runs eagerly inside cbam.attention_maps: compiled code keeps no gates.",
                    stacklevel=2,
                )
                return
            frame = frame.f_back


def _sites(
    model: nn.Module,
) -> tuple[dict[str, tuple[list[AttentionModule], Callable[[Tensor], Any] | None]], tuple[str, ...]]:
    """Return, by site, the modules that tell its gates, or a function that does; and the sites that have neither."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    sites: dict[str, tuple[list[AttentionModule], Callable[[Tensor], Any] | None]] = {}
    silent, inner, attached = [], set[nn.Module](), dict[nn.Module, str]()
    for name, module in model.named_modules():  # a wrapper comes before what is in it
        if isinstance(module, WithAttention):
            attached[module.cbam] = name
        if not isinstance(module, AttentionModule) or module in inner:
            continue
        site = attached.get(module, name)
        if isinstance(module, CBAM):
            inner |= set(module.gates)
            sites[site] = [module, *module.gates], None
        elif isinstance(module, Gate):
            sites[site] = [module], None
        else:
            gates = _gates_of_kind(module)
            if gates is None:
                silent.append(site)
            else:
                sites[site] = [module], gates
    return sites, tuple(silent)


def _gates_of_kind(module: AttentionModule) -> Callable[[Tensor], Any] | None:
    """Return the function map -> gates that the module's kind was registered with."""
    if not isinstance(module, ForeignAttention):
        return None
    try:
        gates = describe(module)[0].gates
    except CBAMError:  # of no registered kind
        return None
    return None if gates is None else lambda x: gates(module.module, x)


def _told(gates: Any, x: Tensor, site: str, dims: int) -> tuple[Tensor | None, Tensor | None]:
    """Sort what a kind's function returned into channel and spatial gates."""
    batch = x if x.dim() == dims + 2 else x[None]
    n, c, *sizes = batch.shape
    ones = (1,) * dims
    found: list[Tensor | None] = [None, None]
    for gate in gates if isinstance(gates, (tuple, list)) else (gates,):
        shape = tuple(gate.shape) if isinstance(gate, Tensor) else None
        if shape in ((n, c), (n, c, *ones)) and not (shape == (n, 1, *ones) and found[0] is not None):
            found[0] = gate.detach().reshape(n, c).clone()
        elif shape == (n, 1, *sizes):
            found[1] = gate.detach().clone()
        elif gate is not None:
            given = shape or type(gate).__name__
            raise CBAMError(
                f"the gates at {site!r} must have the shape {(n, c)}, {(n, c, *ones)} or {(n, 1, *sizes)}"
                f" for this map; the function given as gates= returned {given}."
            )
    return found[0], found[1]


def _listen(module: AttentionModule, listener: Any) -> None:
    with _lock:
        module.listeners = (*module.listeners, listener)


def _stop(module: AttentionModule, listener: Any) -> None:
    with _lock:
        module.listeners = tuple(other for other in module.listeners if other is not listener)


def _shape(gate: Tensor | None) -> str:
    return "none" if gate is None else str(tuple(gate.shape))
