"""Which tests run when, decided in one place.

`make test-fast` runs what is neither slow nor exhaustive, `make test` what is not exhaustive, `make test-all`
everything.
A test that a file marks as slow itself needs no row here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pytest


@dataclass(frozen=True)
class Level:
    """Tests with one mark.

    Args:
        mark: "slow" or "exhaustive".
        tests: a pattern for node ids without the part in brackets; * matches more than one part too.
        why: what they cost, or what the rows that are kept still show.
        keep: rows of a parametrised test that do not get the mark: "pairs", as few as show every pair of parameter
            values; "values", as few as show every value; or patterns for the part in brackets.
    """

    mark: str
    tests: str
    why: str
    keep: str | Sequence[str] = ()

    @property
    def file(self) -> str:
        return self.tests.partition("::")[0]


LEVELS = (
    # Grids. The default keeps rows that show every value, or every pair of values.
    Level(
        "exhaustive", "tests/ops/test_operator_backward.py::TestAgainstFloat64::test_every_shape",
        "formats x presets x modes x dtypes, 25 s", keep="pairs",
    ),
    Level(
        "exhaustive", "tests/ops/test_epilogue.py::TestAgainstFloat64::test_every_shape",
        "formats x presets x modes x dtypes, 25 s", keep="pairs",
    ),
    Level(
        "exhaustive", "tests/ops/test_epilogue.py::TestBitsOfTheSteps::test_every_shape",
        "ReLU x formats x dtypes x presets x modes, 15 s", keep="pairs",
    ),
    Level(
        "exhaustive", "tests/ops/triton/test_kernels.py::TestAgainstFloat64::test_every_dialect",
        "formats x presets in Triton's interpreter, 15 s", keep="values",
    ),
    Level(
        "exhaustive", "tests/ops/triton/test_kernels.py::*::test_the_bits_are_those_of_the_steps",
        "formats x dtypes in Triton's interpreter, 10 s", keep="values",
    ),
    Level(
        "exhaustive", "tests/ops/triton/test_kernels.py::*::test_gradients",
        "formats x presets x norms in Triton's interpreter, 6 s", keep="values",
    ),
    Level(
        "exhaustive", "tests/ops/triton/test_compile_for_gpu.py::test_all_kernels_compile",
        "all kernels for three GPUs, 15 s each; Hopper is kept", keep=("cuda 90*",),
    ),
    Level(
        "exhaustive", "tests/ops/triton/test_compile_for_gpu.py::TestOnes::test_the_cross_product",
        "16 shapes for three GPUs, minutes; five shapes are kept in other tests",
    ),
    Level(
        "exhaustive", "tests/nn/test_after_norm.py::TestInANetwork::test_resnet_50_keeps_no_more_than_the_plain_one",
        "a ResNet-50 for each kind of attention and mode, 9 s", keep="values",
    ),
    Level(
        "exhaustive", "tests/models/test_timm_registry.py::test_settings_point_at_the_first_and_last_layer",
        "builds all 71 names, 11 s; a few of each family are kept", keep=("resnet20*", "*resnet18*", "*mobilenet*"),
    ),
    Level(
        "exhaustive", "tests/models/test_backbones.py::test_parameters_places_and_gradients",
        "trains a step of all backbones, 24 s; one of each family is kept",
        keep=("resnet20", "resnet164", "paper_resnet50", "paper_resnext50_32x4d", "wrn18_1.5", "mobilenet_v1*"),
    ),
    Level(
        "exhaustive", "tests/*/test_zoo.py::test_a_model_of_every_family",
        "109 models, 110 s; one of each way to find sites is kept",
        keep=(
            "torchvision-resnet18", "torchvision-vgg11", "torchvision-densenet121", "torchvision-mobilenet_v3_small",
            "torchvision-ssdlite320*", "torchvision-raft_small", "timm-convnext_zepto_rms", "timm-dpn48b",
            "timm-hrnet_w18_small", "timm-tiny_vit_5m_224", "smp-resnet18", "transformers-resnet-18",
        ),
    ),
    Level(
        "exhaustive", "tests/testing/test_our_gates.py::test_passes",
        "the exporter and the compiler for each of 21 rows, 60 s; six rows are kept",
        keep=("*-[!ce]*", "paper-*", "official-*", "parallel-*", "conv descriptor-*", "se-*", "eca-*"),
    ),
    Level(
        "exhaustive", "tests/detect/test_train.py::test_killed_anywhere_it_ends_with_the_same_bits",
        "20 random interruptions, 10 s each; two are kept", keep=("0", "1"),
    ),
    # Several seconds together or each, and not what breaks first.
    Level("slow", "tests/cli/test_train.py::test_a_folder_that_is_deleted*", "trains in a process of its own, 10 s"),
    Level("slow", "tests/cli/test_faults.py::*", "trainings in processes of their own, 30 s"),
    Level("slow", "tests/soak/test_soak.py::*", "repetition, 10 s"),
    Level("slow", "tests/testing/test_our_gates.py::*", "the exporter, the compiler and the grids of 21 rows, 40 s",
          keep=("*deepcopy*", "*state dict*", "*-attach", "*torch.func*", "paper-[!ec]*")),
    Level("slow", "tests/testing/test_broken_gates.py::test_a_branch_on_values_is_found", "the exporter, 3 s"),
    Level("slow", "tests/testing/test_broken_gates.py::test_a_graph_for*", "the compiler, 2 s"),
    Level("slow", "tests/detect/test_train.py::*", "detectors trained by processes of their own, 60 s"),
    Level("slow", "tests/models/detection/test_attach.py::test_the_backbone_compiles", "torch.compile, 10 s"),
    Level("slow", "tests/detect/test_compare.py::test_[eit]*", "trains three detectors, 15 s"),
    Level("slow", "tests/ops/triton/test_kernels.py::TestAgainstFloat64::*", "Triton's interpreter, 20 s; some rows of "
          "every test are kept", keep="values"),
    Level("slow", "tests/ops/triton/test_kernels.py::*::test_gradients", "Triton's interpreter, 8 s"),
    Level("slow", "tests/ops/triton/test_kernels.py::*::test_the_bits*", "Triton's interpreter, 10 s"),
    Level("slow", "tests/ops/triton/test_kernels.py::TestBits::*", "Triton's interpreter, 8 s"),
    Level("slow", "tests/ops/triton/test_kernels.py::TestSpecialValues::*", "Triton's interpreter, 4 s"),
    Level("slow", "tests/ops/triton/test_operator.py::TestWithoutTheLibrary::*", "processes of their own, 10 s"),
    Level("slow", "tests/ops/triton/test_operator.py::TestChoice::test_the_environment_may_ask_for_it", "a process"),
    Level("slow", "tests/ops/triton/test_operator.py::TestChoice::test_without_a_gpu_it_says_so", "a process"),
    Level("slow", "tests/ops/test_library.py::test_compiled_code_without_a_library", "torch.compile in a process"),
    Level("slow", "tests/ops/test_epilogue.py::TestAgainstFloat64::test_against_differences", "gradcheck, 4 s",
          keep="values"),
    Level("slow", "tests/ops/test_operator_training.py::test_100_steps_are_those_of_plain_torch", "2 s",
          keep="values"),
    Level("slow", "tests/models/test_backbones.py::test_parameters_places_and_gradients", "trains a step of each, 9 s",
          keep=("resnet20", "paper_resnet50")),
    Level("slow", "tests/models/test_backbones.py::test_any_classes_channels_and_sizes", "18 backbones, 4 s",
          keep=("resnet20", "paper_resnet50", "mobilenet_v1*")),
    Level("slow", "tests/models/test_backbones.py::test_keys_and_shapes_are_torchvision_s", "7 large networks, 2 s",
          keep=("paper_resnet50-*",)),
    Level("slow", "tests/models/test_backbones.py::test_vgg_and_torchvision_s_resnets_take_the_suffix_too", "3 s"),
    Level("slow", "tests/models/test_matched_control.py::test_as_many_parameters_as_with_attention*",
          "9 networks, 6 s", keep=("resnet20*",)),
    Level("slow", "tests/models/test_timm_registry.py::test_networks", "5 networks, 4 s", keep=("resnet20*",)),
    Level("slow", "tests/models/test_timm_registry.py::test_importing_the_models_leaves_timm_alone", "a process"),
    Level("slow", "tests/models/test_cam_layer.py::test_known_networks", "8 networks, 3 s", keep=("*resnet18*",)),
    Level("slow", "tests/evaluate/test_cost.py::test_the_paper_s_digits", "8 large networks, 3 s",
          keep=("*resnet50*",)),
    Level("slow", "tests/evaluate/test_paper_tables.py::test_every_cost_of_table_4_is_the_printed_one", "24 networks"),
    Level("slow", "tests/evaluate/test_paper_tables.py::test_where_the_ablations_print_other_costs", "12 networks"),
    Level("slow", "tests/evaluate/test_paper_tables.py::test_what_is_shown", "counts the networks of five tables"),
    Level("slow", "tests/cli/test_plan_cost.py::test_a_table_of_the_paper", "counts 24 networks"),
    Level("slow", "tests/cli/test_doctor.py::test_the_gpu_operator_by_force_without_a_gpu", "a process"),
    Level("slow", "tests/cli/test_main.py::test_help_is_cheap_and_python_m_works", "two processes"),
    Level("slow", "tests/cli/test_train.py::test_other_settings_in_the_same_folder_are_refused", "needs a whole run"),
    Level("slow", "tests/compare/test_grid.py::test_named_sites_arrive", "7 s"),
    Level("slow", "tests/compare/test_folder.py::test_a_second_process_is_refused_and_a_killed_one_does_not_count",
          "a process"),
    Level("slow", "tests/compare/test_report.py::TestCircumstances::test_pictures_stay_inside_the_run_folder", "4 s"),
    Level("slow", "tests/*/test_zoo.py::test_the_command_goes_on_and_reports", "two processes"),
    Level("slow", "tests/bench/test_modules.py::test_every_dtype_and_layout_is_measured", "16 measurements, 5 s",
          keep="values"),
    Level("slow", "tests/bench/test_run.py::test_threads_are_given_back", "4 s"),
    Level("slow", "tests/test_import.py::test_the_check_can_fail", "two processes"),
)  # fmt: skip


def mark(items: Iterable[Any], levels: Sequence[Level] = LEVELS) -> list[Level]:
    """Add the marks of `levels` to collected tests; return the levels whose files were collected but match no test."""
    by_test: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        by_test[item.nodeid.partition("[")[0]].append(item)
    files = {name.partition("::")[0] for name in by_test}
    unmatched = []
    for level in levels:
        matching = [name for name in by_test if fnmatchcase(name, level.tests)]
        marked = [item for name in matching for item in _without_kept(by_test[name], level.keep)]
        for item in marked:
            item.add_marker(getattr(pytest.mark, level.mark))
        if any(fnmatchcase(file, level.file) for file in files) and not marked:
            unmatched.append(level)
    return unmatched


def _without_kept(rows: list[Any], keep: str | Sequence[str]) -> list[Any]:
    if isinstance(keep, str):
        if not all(hasattr(row, "callspec") for row in rows):
            return rows
        kept = set(_covering([row.callspec.params for row in rows], {"values": 1, "pairs": 2}[keep]))
        return [row for number, row in enumerate(rows) if number not in kept]
    names = [row.nodeid.partition("[")[2].removesuffix("]") for row in rows]
    return [
        row
        for row, name in zip(rows, names, strict=True)
        if not any(fnmatchcase(name, pattern) for pattern in keep)
    ]


def _covering(rows: Sequence[dict[str, Any]], size: int) -> list[int]:
    """Choose rows that hold every combination of `size` parameter values that occurs in any row: greedily, few."""
    values = [sorted((name, repr(value)) for name, value in row.items()) for row in rows]
    held = [set(itertools.combinations(row, min(size, len(row)))) for row in values]
    missing = set().union(*held)
    chosen = []
    while missing:
        best = max(range(len(rows)), key=lambda number: len(held[number] & missing))
        chosen.append(best)
        missing -= held[best]
    return chosen
