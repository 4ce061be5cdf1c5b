"""Read the machine code of a kernel: registers, spills, and the instructions that a thread executes.

Instructions are counted along the shortest way from the entry to the exit that runs the main loop: parts that only
odd shapes or NaN need lie beside it. The main loop is the first one that reads global memory and takes no root: those
that do fold a norm.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
_JUMP = re.compile(r"^(@!?U?P\w+\s+)?BRA(?:\.\w+)*\s+(.*?)(0x[0-9a-f]+)\s*$")


@dataclass
class Code:
    """The machine code of one kernel.

    Args:
        registers: Of a thread.
        instructions: (address, text), in the order of the addresses.
    """

    registers: int
    instructions: list[tuple[int, str]]

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in self.instructions)

    @cached_property
    def _jumps(self) -> dict[int, list[int]]:
        """Where each instruction may go on, by number."""
        number = {address: i for i, (address, _) in enumerate(self.instructions)}
        following = {}
        for i, (_, text) in enumerate(self.instructions):
            jump = _JUMP.match(text)
            if jump:
                always = not jump[1] and not re.search(r"P\d", jump[2])
                following[i] = [number[int(jump[3], 16)]] + ([] if always else [i + 1])
            elif re.match(r"(@!?U?P\w+\s+)?(EXIT|RET)", text):
                following[i] = [i + 1] if text.startswith("@") else []
            else:
                following[i] = [i + 1] if i + 1 < len(self.instructions) else []
        return following

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction, by number, of each loop that reads global memory."""
        return sorted(
            (head, i)
            for i, targets in self._jumps.items()
            for head in targets
            if head < i and any("LDG" in text for _, text in self.instructions[head : i + 1])
        )

    @property
    def main(self) -> tuple[int, int] | None:
        """The main loop: the first one that has no other inside and folds no norm; None without loops."""
        return min(
            (loop for loop in self.loops if not self.inside(loop) and not self._takes_a_root(loop)),
            default=None,
        )

    def _takes_a_root(self, loop: tuple[int, int]) -> bool:
        return any("MUFU.RSQ" in text for _, text in self.instructions[loop[0] : loop[1] + 1])

    def inside(self, loop: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the loops inside one."""
        return [a for a in self.loops if a != loop and loop[0] <= a[0] and a[1] <= loop[1]]

    def turn(self, loop: tuple[int, int]) -> int:
        """Return the instructions of one turn of a loop, those inside turning once."""
        return self._shortest(*loop) + 1

    def around(self, loop: tuple[int, int] | None) -> int:
        """Return the instructions before a loop and behind it."""
        ends = [i for i, (_, text) in enumerate(self.instructions) if re.search(r"\bEXIT\b", text)]
        if loop is None:
            return min(self._shortest(0, end) for end in ends) + 1
        return self._shortest(0, loop[0]) + min(self._shortest(loop[1], end) for end in ends)

    def _shortest(self, start: int, end: int) -> int:
        """Return the fewest instructions executed from one to another, the latter not counted."""
        best, queue = {start: 0}, [(0, start)]
        while queue:
            count, i = heapq.heappop(queue)
            if i == end:
                return count
            for target in self._jumps[i]:
                if count + 1 < best.get(target, 1 << 30):
                    best[target] = count + 1
                    heapq.heappush(queue, (count + 1, target))
        return 1 << 30


def code(compiled: Any) -> Code:
    """Take a compiled kernel for NVIDIA GPUs apart, with the tools that Triton brings along."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])

        def ask(question: str) -> str:
            command = [_TOOLS / "cuobjdump", question, file]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        found = [(int(address, 16), text.strip()) for address, text in _INSTRUCTION.findall(ask("-sass"))]
        registers = re.search(r"REG:(\d+)", ask("-res-usage"))
    assert registers, "cuobjdump names no registers"
    return Code(int(registers[1]), found)
