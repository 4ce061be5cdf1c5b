"""Lower an exported network with ExecuTorch, with XNNPACK and without: which operators it takes, and the difference.

    cbam export RUN --output plain.pt2 --plain
    python benchmarks/export_executorch.py plain.pt2

Needs the package executorch. docs/export.md has the results.
"""

from __future__ import annotations

import argparse

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime


def main() -> None:
    """Print a paragraph for each way."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("file")
    given = options.parse_args()
    program = torch.export.load(given.file)
    module, names = program.module(), program.graph_signature.user_inputs
    (shape,) = [tuple(node.meta["val"].shape) for node in program.graph.nodes if node.name in names]
    for title, partitioners in {"without XNNPACK": [], "with XNNPACK": [XnnpackPartitioner()]}.items():
        edge = to_edge_transform_and_lower(torch.export.load(given.file), partitioner=partitioners)
        info = get_delegation_info(edge.exported_program().graph_module)
        kinds = info.delegation_by_operator.items()
        print(
            f"{title}: {info.num_delegated_nodes} operators in {info.num_delegated_subgraphs} parts taken over,"
            f" {info.num_non_delegated_nodes} left"
        )
        print("  taken over:", {name: count.delegated for name, count in kinds if count.delegated})
        print("  left:", {name: count.non_delegated for name, count in kinds if count.non_delegated})
        method = Runtime.get().load_program(edge.to_executorch().buffer).load_method("forward")
        largest = scale = 0.0
        for seed in range(3):
            images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                expected = module(images)
            largest = max(largest, float((method.execute([images])[0] - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
        print(f"  largest difference {largest:.1e} of scores up to {scale:.1f}")


if __name__ == "__main__":
    main()
