# Copyright Spack Project Developers. See COPYRIGHT file for details.
#
# SPDX-License-Identifier: (Apache-2.0 OR MIT)

from spack.package import *
from spack_repo.builtin.build_systems.python import PythonPackage


class PyCollageMpi(PythonPackage):
    """Classify very many images over MPI: every image gets exactly one result, and a slow rank
    need not hold up the others."""

    pypi = "collage-mpi/collage_mpi-1.0.0.tar.gz"

    license("Apache-2.0")

    version("1.0.0", sha256="0000000000000000000000000000000000000000000000000000000000000000")

    variant("plot", default=True, description="Draw figures")
    variant("vision", default=False, description="Networks of torchvision")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("py-numpy@1.26:", type=("build", "run"))
    depends_on("py-h5py@3.10:", type=("build", "run"))
    depends_on("py-isal@1.7:1", type=("build", "run"))
    depends_on("py-jinja2@3.1:", type=("build", "run"))
    depends_on("py-mpi4py@4.0.3:", type=("build", "run"))
    depends_on("py-msgspec@0.19:0", type=("build", "run"))
    depends_on("py-pillow@10:", type=("build", "run"))
    depends_on("py-pyarrow@15:", type=("build", "run"))
    depends_on("py-rich@13:", type=("build", "run"))
    depends_on("py-safetensors@0.4.3:", type=("build", "run"))
    depends_on("py-torch@2.6:", type=("build", "run"))
    depends_on("py-tomli@2:", when="^python@:3.10", type=("build", "run"))
    depends_on("py-matplotlib@3.8:", when="+plot", type=("build", "run"))
    depends_on("py-torchvision@0.21:", when="+vision", type=("build", "run"))
