"""`make_files.py` runs on an older version only, so it is not imported to look for doctests."""

collect_ignore = ["make_files.py"]
