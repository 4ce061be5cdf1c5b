"""Detectors with attention: train, evaluate and compare them.

`config` holds the options, `task` what a batch, its loss and its scores are, `run` one training from its options to its
result, `saved` a detector in a folder.
"""
