"""The operator's signature: one table in Python, equal to what the C++ sources declare and take."""

import re
from pathlib import Path

import pytest
import torch

from cbam.ops import library, signature
from cbam.ops.signature import (
    BackwardArguments,
    ForwardArguments,
    NormBefore,
    OperatorConfig,
    Weights,
    flat,
)
from tests.ops.library import needs_operator

CSRC = Path(__file__).parent.parent.parent / "csrc"


def schema_of(source, name):
    """The schema that library.cpp declares for `name`, its pieces of text put together."""
    texts = re.findall(r'library\.def\(\s*((?:"[^"]*"\s*)+)\)', source)
    schemas = ["".join(re.findall(r'"([^"]*)"', text)) for text in texts]
    (schema,) = (schema for schema in schemas if schema.startswith(f"{name}("))
    return schema


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_cpp_sources_declare_the_same_schema(name):
    declared = schema_of((CSRC / "library.cpp").read_text(), name)
    assert torch._C.parse_schema(declared) == torch._C.parse_schema(signature.SCHEMAS[name])


@needs_operator
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_compiled_library_has_the_same_schema(name):
    assert library.load() is None
    expected = torch._C.parse_schema(f"cbam::{signature.SCHEMAS[name]}")
    assert str(getattr(torch.ops.cbam, name).default._schema) == str(expected)


def enum(name):
    (body,) = re.findall(rf"enum {name} \{{([^}}]*)\}}", (CSRC / "problem.h").read_text())
    return {key: int(number) for key, number in re.findall(r"(\w+) = (\d+)", body)}


def test_the_cpp_sources_have_the_same_numbers():
    assert enum("Pooling") == {
        "kPoolAverage": signature.POOLINGS["avg"],
        "kPoolMaximum": signature.POOLINGS["max"],
        "kPoolBoth": signature.POOLINGS["both"],
    }
    assert enum("Descriptor") == {
        "kAverage": signature.DESCRIPTORS["avg", "avg-max"],
        "kMaximum": signature.DESCRIPTORS["max", "avg-max"],
        "kAverageMaximum": signature.DESCRIPTORS["both", "avg-max"],
        "kMaximumAverage": signature.DESCRIPTORS["both", "max-avg"],
    }
    assert enum("Activation") == {
        "kSigmoid": signature.ACTIVATIONS["sigmoid"],
        "kHardSigmoid": signature.ACTIVATIONS["hardsigmoid"],
    }


def test_names_and_numbers_of_rows_and_planes_agree():
    for name, number in signature.POOLINGS.items():
        assert signature.POOLED_ROWS[number] == (("avg", "max") if name == "both" else (name,))
    for (kind, order), number in signature.DESCRIPTORS.items():
        expected = tuple(order.split("-")) if kind == "both" else (kind,)
        assert signature.DESCRIPTOR_PLANES[number] == expected


@pytest.mark.parametrize(
    ("call", "arguments"),
    [(ForwardArguments, signature.FORWARD), (BackwardArguments, signature.BACKWARD)],
    ids=["forward", "backward"],
)
def test_arguments_are_found_by_their_names(call, arguments):
    names = [argument.name for argument in arguments]
    assert len(set(names)) == len(names)
    parsed = call.parse(names)
    assert flat(parsed) == tuple(names)
    assert parsed.x == "x"
    assert parsed.weights == Weights._make(Weights._fields)
    assert parsed.before == NormBefore("pre_weight", "pre_bias", "pre_mean", "pre_var")
    numbers = [name for name in OperatorConfig._fields if name in names]
    assert parsed.config == OperatorConfig(*numbers)


def test_the_tensors_come_first_and_the_residual_last_of_them():
    kinds = [argument.type.startswith("Tensor") for argument in signature.FORWARD]
    assert kinds == sorted(kinds, reverse=True)
    assert signature.FORWARD[signature.RESIDUAL].name == "residual"


def test_backward_takes_the_kept_tensors_in_the_order_of_forward():
    """`gradients` hands them on as they are, with the output in the place of the residual."""
    kept = [argument.name for argument in signature.FORWARD[: signature.RESIDUAL]]
    names = [argument.name for argument in signature.BACKWARD]
    numbers = list(OperatorConfig._fields[: signature.KEPT_NUMBERS])
    assert OperatorConfig._fields[signature.KEPT_NUMBERS :] == ("relu",)  # `out` tells of it
    assert names == ["grad", *kept, "out", "saved", "argmax", *numbers]


def test_constants_are_the_weights_without_a_gradient():
    weights = Weights._make(Weights._fields)
    differentiable = {signature.FORWARD[i].name for i in signature.DIFFERENTIABLE}
    assert set(weights.constants) == set(weights) - differentiable
    assert signature.NO_CHANNEL_GATE == (None,) * 5
    assert Weights(*signature.NO_CHANNEL_GATE, "kernel").kernel == "kernel"


def test_this_check_can_fail():
    source = (CSRC / "library.cpp").read_text().replace("Tensor? residual", "Tensor? shortcut")
    assert torch._C.parse_schema(schema_of(source, "forward")) != torch._C.parse_schema(
        signature.SCHEMAS["forward"]
    )
