# Copyright Spack Project Developers. See COPYRIGHT file for details.
#
# SPDX-License-Identifier: (Apache-2.0 OR MIT)

from spack.package import *
from spack_repo.builtin.build_systems.python import PythonPackage


class PyIsal(PythonPackage):
    """Faster zlib and gzip compatible compression and checksums by Intel's ISA-L."""

    pypi = "isal/isal-1.9.1.tar.gz"

    license("PSF-2.0")

    version("1.9.1", sha256="d210dca02a689ef2af709d2c62d2daac2e36b5d2fa06e6dc0d023c83fee77e91")

    depends_on("c", type="build")
    depends_on("python@3.9:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("py-setuptools-scm@8:", type="build")
    depends_on("isa-l", type=("build", "link"))

    def setup_build_environment(self, env: EnvironmentModifications) -> None:
        env.set("PYTHON_ISAL_LINK_DYNAMIC", "True")
