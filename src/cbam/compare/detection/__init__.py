"""Comparisons of detectors: plain, with SE, with CBAM, ...

`config` holds the options, `run` the run from its options to its report, `measure` what follows the trainings, `report`
the page.
"""
