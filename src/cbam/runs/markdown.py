"""Line breaks for generated Markdown."""

from __future__ import annotations

import re
import textwrap

WIDTH = 120
_BULLET = re.compile(r"(\s*)([-*+]|\d+\.)\s+")
_NOT_PROSE = re.compile(r"\s*(\||#|!\[|<|>)")


def wrap(text: str, width: int = WIDTH) -> str:
    """Return Markdown with its prose wrapped; code blocks, tables, headings and pictures stay as they are.

    >>> print(wrap("- one two three\\n\\n| a | wide | table |", 12))
    - one two
      three
    <BLANKLINE>
    | a | wide | table |
    """
    lines: list[str] = []
    words: list[str] = []
    indent = ["", ""]
    in_code = False

    def flush() -> None:
        if words:
            lines.extend(_filled(" ".join(words), indent[0], indent[1], width))
            words.clear()

    for line in text.split("\n"):
        fence = line.lstrip().startswith("```")
        if in_code or fence or not line.strip() or _NOT_PROSE.match(line):
            flush()
            lines.append(line)
            in_code ^= fence
            continue
        bullet = _BULLET.match(line)
        if bullet:
            flush()
            line = line[bullet.end() :]
            indent[:] = [f"{bullet[1]}{bullet[2]} ", " " * (len(bullet[1]) + len(bullet[2]) + 1)]
        elif not words:
            indent[:] = [line[: len(line) - len(line.lstrip())]] * 2
        words.append(line.strip())
    flush()
    return "\n".join(lines)


def _filled(text: str, first: str, rest: str, width: int) -> list[str]:
    # Short code spans stay on one line, and no line may begin with what Markdown reads as a list.
    held = re.sub(r"`[^`]{1,80}`", lambda code: code[0].replace(" ", "\0"), text)
    for narrower in range(width, width - 20, -1):
        lines = textwrap.wrap(
            held, narrower, initial_indent=first, subsequent_indent=rest,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        if not any(re.match(r"([-*+#>|]|\d+[.)])(\s|$)", line[len(rest) :]) for line in lines[1:]):
            break
    return [line.replace("\0", " ") for line in lines]
