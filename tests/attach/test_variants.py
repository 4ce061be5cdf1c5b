"""What the names behind `--attention` stand for."""

from __future__ import annotations

import pytest

from cbam.attach import plan
from cbam.attach.variants import WORDS, label, parse_variant, parse_variants, variant_names
from cbam.errors import CBAMError
from cbam.models import build_model


@pytest.mark.parametrize(
    ("name", "fine_tuning", "expected"),
    [
        ("cbam", False, {"attention": "cbam", "init": "paper"}),
        ("cbam", True, {"attention": "cbam", "init": "identity"}),
        ("cbam:fresh", True, {"init": "paper"}),
        ("cbam:identity", False, {"init": "identity"}),
        ("cbam:official:k3", False, {"preset": "official", "kernel_size": 3}),
        ("se:r8", False, {"attention": "se", "reduction_ratio": 8}),
        ("channel:max", False, {"attention": "channel", "channel_pooling": "max"}),
        ("cbam:conv:k3", False, {"spatial_descriptor": "conv", "kernel_size": 3}),
        ("cbam:parallel", False, {"arrangement": "parallel"}),
    ],
)
def test_what_a_name_stands_for(name, fine_tuning, expected):
    arguments = parse_variant(name).attach_arguments(fine_tuning=fine_tuning)
    assert {key: arguments[key] for key in expected} == expected


def test_attach_takes_every_word():
    model = build_model("resnet20", 10)
    for word, part in WORDS.items():
        for base in part.of:
            arguments = parse_variant(f"{base}:{word}").attach_arguments(fine_tuning=False)
            assert plan(model, input_size=(3, 16, 16), **arguments).sites


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none,cbma", "unknown attention 'cbma'. Did you mean 'cbam'"),
        ("none,cbam:offical", "'cbam:offical': 'offical'. Did you mean 'official'"),
        ("none,se:k3", "'k3' works with cbam, spatial.*, not with se"),
        ("none,cbam:k3:k5", "sets the kernel_size twice"),
        ("none,cbam:official:timm", "sets the preset twice: official and timm"),
        ("none,cbam:k3:official,cbam:official:k3", "are the same network"),
        ("none,none:fresh", "unknown attention 'none:fresh'"),
        ("none,cbam:k0", "'k0'"),
    ],
)
def test_what_makes_no_sense_is_explained(text, expected):
    with pytest.raises(CBAMError, match=expected):
        parse_variants(text)


def test_the_listed_names_exist_and_are_told_apart():
    assert parse_variants(variant_names()) == variant_names()
    assert len({label(name) for name in variant_names()}) == len(variant_names())


def test_labels():
    assert label("cbam:official:k3") == "CBAM (official, k = 3)"
    assert label("cbam, gates: rate × 10") == "cbam, gates: rate × 10", "a name that is no variant stays"
