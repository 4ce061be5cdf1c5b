"""Numbers as text."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """Write a number with what it counts.

    >>> counted(1, "epoch"), counted(1200, "model")
    ('1 epoch', '1,200 models')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time for people.

    >>> duration(7.2), duration(75), duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
