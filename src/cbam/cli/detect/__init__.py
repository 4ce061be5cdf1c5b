"""`cbam detect VERB ...`: detectors with attention."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from cbam.errors import CBAMError, nearest

# Verb -> what it does. The module of that name has main(arguments) and is imported only when needed.
VERBS = {
    "train": "train one detector with attention; resumable",
    "compare": "train detectors plain and with attention, several seeds; report whether it helps",
    "evaluate": "average precision of a trained detector: COCO's 12 figures, or VOC's",
    "predict": "find objects in pictures: drawings and a JSON file",
    "generate": "write a generated set with boxes and masks, to try everything without a download",
}


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the `arguments` after it; return the exit code.

    Raises:
        CBAMError: There is no such verb.
    """
    arguments = list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        close = nearest(verb, VERBS, count=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise CBAMError(f"unknown verb {verb!r} of cbam detect.{hint} Verbs: {', '.join(VERBS)}")
    code: int = importlib.import_module(f"cbam.cli.detect.{verb}").main(rest)
    return code


def usage() -> str:
    """Return the text of `cbam detect --help`."""
    names = "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())
    return (
        "usage: cbam detect VERB [options]\n\nFaster R-CNN, Mask R-CNN, RetinaNet, FCOS, SSD and StairNet with "
        f"attention.\n\n{names}\n\ncbam detect VERB --help shows the options of a verb."
    )
