"""Wrong options are answered before any work, with what was given and what is expected."""

from __future__ import annotations

import pytest

from cbam.bench.config import BenchConfig, defaults, parse_shape, shape_text
from cbam.errors import CBAMError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("module",)}, "unknown part 'module'. Did you mean 'modules'?"),
        ({"parts": ()}, "--parts expects at least one value, given none"),
        ({"shapes": ("256x56",)}, "--shapes expects CxHxW, such as 256x56x56, given '256x56'"),
        ({"shapes": ("256x0x3",)}, "given '256x0x3'"),
        ({"shapes": ()}, "--shapes expects at least one value"),
        ({"dtype": "float"}, "unknown dtype 'float'"),
        ({"memory_formats": ("nhwc",)}, "unknown memory format 'nhwc'"),
        ({"batch_size": 0}, "--batch-size must be at least 1, given 0"),
        ({"image_size": 8}, "--image-size must be at least 32, given 8"),
        ({"rounds": 1}, "--rounds must be at least 2, given 1"),
        ({"threads": 0}, "--threads must be at least 1, given 0"),
        ({"seconds": 0.0}, "--seconds must be more than 0, given 0"),
        ({"budget": -1.0}, "--budget must be more than 0, given -1"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"parts": ("traffic",)}, "--parts traffic: measured on a GPU only. Add --device cuda"),
        ({"parts": ("code",), "device": "cuda"}, "--parts code: measured on a CPU only. Leave out --device"),
        ({"seconds": float("nan")}, "--seconds must be more than 0, given nan"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(CBAMError) as raised:
        BenchConfig(**options)
    assert message in str(raised.value)


def test_the_identity_leaves_out_what_does_not_change_a_number(tmp_path):
    same = BenchConfig(output=tmp_path, parts=("scaling",), restart=True)
    assert same.identity() == BenchConfig().identity()
    for change in ({"rounds": 5}, {"threads": 1}, {"dtype": "bfloat16"}, {"compile": False}, {"quick": True}):
        assert BenchConfig(**change).identity() != BenchConfig().identity(), change


def test_quick_is_small_and_stays_recognisable():
    quick = BenchConfig(quick=True, threads=1).in_effect()
    assert quick.quick
    assert not quick.compile
    assert max(height for _, height, _ in quick.maps) <= 14
    assert quick.identity() != BenchConfig(threads=1).in_effect().identity()


def test_shapes():
    assert parse_shape("3x4x5") == (3, 4, 5)
    assert shape_text((8, 3, 4, 5)) == "8x3x4x5"
    assert BenchConfig(shapes=("3x4x5", "3x4x5")).maps == [(3, 4, 5)]


def test_a_gpu_has_defaults_of_its_own_and_a_dry_run_is_tiny():
    gpu, dry = defaults("cuda"), defaults("dry-run").in_effect()
    assert (gpu.dtype, gpu.memory_formats, gpu.batch_size, gpu.budget) == (
        "bfloat16",
        ("channels_last",),
        128,
        480,
    )
    assert dry.maps == [(8, 6, 6)]
    assert dry.small
    assert defaults("cpu") == defaults("nonsense") == BenchConfig()
