"""Public names, their parameters and the commands' options change only together with the committed list."""

from pathlib import Path

import cbam
from tests import public

LIST = Path(__file__).with_name("public.txt")


def test_what_others_rely_on_is_what_the_list_says():
    listed, found = LIST.read_text().splitlines(), public.lines()
    gone, new = sorted(set(listed) - set(found)), sorted(set(found) - set(listed))
    assert gone + new == [], "\n".join(
        [
            "if meant: python -m tests.public > tests/public.txt",
            *(f"- {x}" for x in gone),
            *(f"+ {x}" for x in new),
        ]
    )


def test_the_list_holds_names_parameters_and_options():
    listed = LIST.read_text()
    assert "\ncbam.plan(model, " in listed
    assert " --attention " in next(line for line in listed.splitlines() if line.startswith("cbam train "))
    assert public.parameters(cbam.CBAM).startswith("(in_channels, reduction_ratio=, kernel_size=, *, preset=")
    assert len(listed.splitlines()) > 90
