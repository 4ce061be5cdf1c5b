"""CBAM attention for any CNN: attach it, count it, compare it."""

__version__ = "0.1.0"
