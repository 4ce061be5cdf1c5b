"""A script that is run on its own, and imports Triton at once, is no module to look for doctests in."""

collect_ignore = ["compile_for_gpu.py", "host_time.py", "instructions.py", "sass.py", "stand_in.py"]
