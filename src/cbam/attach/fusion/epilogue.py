"""Find out whether a block ends in relu(attention(norm(u)) + shortcut), and split its forward pass there."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cbam.attach.fusion.recording import Recording, record

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_ADDITION_METHODS = ("add", "add_")
_IN_PLACE = (operator.iadd, "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_RELU_METHODS = ("relu", "relu_")


@dataclass(frozen=True)
class Epilogue:
    """The end of a block's forward pass, starting at its site.

    Args:
        recording: of the whole forward pass.
        steps: its last nodes: the call of the site, whose argument is u; calls of nn.Identity; the addition; possibly
            a ReLU.
        shortcut: the node that makes the other operand of the addition.
        relu: whether there is a ReLU.
        passed: the modules that the steps after the site call, each with its class.
    """

    recording: Recording
    steps: tuple[fx.Node, ...]
    shortcut: fx.Node
    relu: bool
    passed: tuple[tuple[nn.Module, type[nn.Module]], ...]

    def front(self) -> Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]:
        """Return the function (block, x) -> (u, shortcut)."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.recording.nodes:
            if node.op != "output" and node not in self.steps:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        (u,) = self.steps[0].all_input_nodes
        graph.output((copies[u], copies[self.shortcut]))
        return _function(graph)

    def back(self) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        """Return the function (block, what the site gives, shortcut) -> what the block returns."""
        site, *steps = self.steps
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in (site, self.shortcut)}
        for node in steps:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[steps[-1]])
        return _function(graph)

    def __str__(self) -> str:
        return "add, relu" if self.relu else "add"


def find_epilogue(block: nn.Module, site: nn.Module) -> Epilogue | None:
    """Return the epilogue that begins at `site`; None if the block does anything else there or cannot be recorded.

    Args:
        block: any module.
        site: a module inside it.

    >>> from torchvision.models import resnet18
    >>> block = resnet18().layer1[0]
    >>> print(find_epilogue(block, block.bn2), find_epilogue(block, block.bn1))
    add, relu None
    """
    return epilogue_of(block, record(block, type(block).forward, site))


def epilogue_of(block: nn.Module, recording: Recording) -> Epilogue | None:
    """Return the epilogue in a recording; see `find_epilogue`."""
    if len(recording.calls) != 1:
        return None
    (site,) = recording.calls
    if len(site.args) != 1 or len(site.all_input_nodes) != 1 or site.kwargs:
        return None
    steps, modules = [site], list[tuple[nn.Module, type[nn.Module]]]()
    while (step := _only_user(steps[-1])) is not None and _calls(block, step, nn.Identity, modules):
        steps.append(step)
    if step is None or not _adds_a_map(step, steps[-1]):
        return None
    (shortcut,) = (node for node in step.all_input_nodes if node is not steps[-1])
    steps.append(step)
    after = _only_user(step)
    relu = after is not None and _is_relu(block, after, modules)
    if relu and after is not None:
        steps.append(after)
    *others, output = (node for node in recording.nodes if node not in steps)
    if output.all_input_nodes != [steps[-1]] or recording.nodes[-2] is not steps[-1]:
        return None
    if any(site.all_input_nodes[0] in node.all_input_nodes for node in others if node > site):
        return None  # the site runs later than before, and u may have changed by then
    return Epilogue(recording, tuple(steps), shortcut, relu, tuple(modules))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(block: nn.Module, node: fx.Node, kind: type[nn.Module], found: list[Any]) -> bool:
    """Return whether a node calls a module that is exactly of a kind with one argument, and note the module."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    module = block.get_submodule(str(node.target))
    if type(module) is not kind:
        return False
    found.append((module, kind))
    return True


def _adds_a_map(node: fx.Node, attended: fx.Node) -> bool:
    calls = node.op == "call_function" and node.target in _ADDITIONS
    calls = calls or (node.op == "call_method" and node.target in _ADDITION_METHODS)
    if not calls or node.kwargs or len(node.args) != 2 or len(node.all_input_nodes) != 2:
        return False
    return node.args[0] is attended or node.target not in _IN_PLACE  # not in place into the shortcut


def _is_relu(block: nn.Module, node: fx.Node, found: list[Any]) -> bool:
    if node.op == "call_module":
        return _calls(block, node, nn.ReLU, found)
    if (
        node.op not in ("call_function", "call_method")
        or len(node.args) != 1
        or set(node.kwargs) - {"inplace"}
    ):
        return False
    return node.target in (_RELUS if node.op == "call_function" else _RELU_METHODS)


def _function(graph: fx.Graph) -> Any:
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<part of a block>", "exec"), namespace)  # as torch.fx.GraphModule does
    return namespace["forward"]
