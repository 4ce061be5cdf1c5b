"""Build the C++ operator beside the Python package where a compiler and PyTorch's headers are at hand; otherwise not.

Everything else about the package is in pyproject.toml. The extension uses PyTorch's stable ABI and Python's limited
API, so one binary serves every supported version of both. Without it the package works, through plain PyTorch.
"""

import importlib.util
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [
    "library",
    "direct",
    "problem",
    "isa",
    "scratch",
    "forward",
    "backward",
    "kernels_plain",
    "kernels_avx2",
    "kernels_avx512",
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTIONS = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


def torch_folder() -> Path | None:
    """Return the folder of the installed PyTorch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def extensions() -> list[Extension]:
    """Return the extension, or nothing where it cannot be built."""
    torch = torch_folder()
    if torch is None or sys.platform == "win32" or os.environ.get("CBAM_BUILD_CPP") == "0":
        return []
    names = [name for name in SOURCES if X86 or name not in INSTRUCTIONS]
    checked = [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-g",
        "-fno-omit-frame-pointer",
    ]
    sanitize = checked if os.environ.get("CBAM_SANITIZE") == "1" else []
    define = [("TORCH_TARGET_VERSION", "0x020B000000000000")] + ([("CBAM_X86", "1")] if X86 else [])
    return [
        Extension(
            "cbam._cpp",
            sources=[f"csrc/{name}.cpp" for name in names],
            depends=[str(path) for path in Path("csrc").glob("*.h")],
            include_dirs=[str(torch / "include")],
            define_macros=define,
            extra_compile_args=["-std=c++20", "-O1" if sanitize else "-O3", "-fvisibility=hidden", "-Wall", "-Wextra",
                                "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-unused-parameter",
                                *(sanitize or ["-g0"])],
            library_dirs=[str(torch / "lib")],
            libraries=["torch_cpu"],
            extra_link_args=sanitize,
            language="c++",
            py_limited_api=True,
            optional=os.environ.get("CBAM_BUILD_CPP") != "1",  # a failed build is a warning, unless it was asked for
        )
    ]  # fmt: skip


class BuildOperator(build_ext):
    """Compile the files side by side, every instruction set's with its own options."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        compiler = self.compiler
        one_after_the_other = compiler.compile

        def compile(sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
                    extra_postargs=None, depends=None):  # fmt: skip
            macros, objects, postargs, pp_opts, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)

            def one(obj: str) -> None:
                source, suffix = build[obj]
                options = [*postargs, *INSTRUCTIONS.get(Path(source).stem, [])]
                compiler._compile(obj, source, suffix, cc_args, options, pp_opts)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(one, [obj for obj in objects if obj in build]))
            return objects

        compiler.compile = compile
        try:
            super().build_extension(ext)
        finally:
            compiler.compile = one_after_the_other


limited = {"bdist_wheel": {"py_limited_api": "cp310"}}
built = extensions()
setup(ext_modules=built, cmdclass={"build_ext": BuildOperator}, options=limited if built else {})
