"""The native kernels: an optional extension, without Python's or torch's ABI.

Where there is no compiler, the wheel is pure Python; else it is for a platform, for any Python.
"""

import os
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):
    """Build a library that ctypes loads."""

    def get_ext_filename(self, ext_name: str) -> str:
        return ext_name.replace(".", os.sep) + ".so"  # no version of Python in the name

    def get_export_symbols(self, ext: Any) -> Any:
        return ext.export_symbols  # no PyInit function


class Wheel(bdist_wheel):
    """A wheel whose tag says whether the library is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        built = all(map(os.path.exists, self.get_finalized_command("build_ext").get_outputs()))
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(
    ext_modules=[
        Extension(
            "rai_chain.kernels._native",
            ["rai_chain/kernels/native.cpp"],
            depends=["rai_chain/kernels/step.cpp"],
            language="c++",
            optional=True,
            extra_compile_args=[
                *("-O3", "-std=c++17", "-fvisibility=hidden", "-g0", "-pthread"),
                # The same bits everywhere, and loops that can be vectorised.
                *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
            ],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
