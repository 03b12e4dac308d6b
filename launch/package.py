# Spack recipe of retort. Assumes Spack 0.22 or newer, and a checkout:
#   mkdir -p repo/packages/retort && cp launch/package.py repo/packages/retort/ && printf 'repo:\n  namespace: own\n' > repo/repo.yaml
#   spack repo add repo && spack dev-build -d . retort@develop +mpi +cuda ^openmpi
# Building fetches crates. NCCL and CUDA's driver are looked for at run time only.
from spack.package import *


class Retort(Package):
    """Data-parallel trainer for CNN image classifiers and knowledge distillation."""

    version("develop")

    variant("mpi", default=True, description="the plugin by which CPU ranks speak MPI and GPU ranks meet")
    variant("cuda", default=True, description="kernels for GPUs (nvcc at build time), NCCL at run time")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("rust@1.89:", type="build")
    depends_on("mpi", when="+mpi")
    depends_on("llvm+clang", type="build", when="+mpi")
    depends_on("cuda@13.0:", type="build", when="+cuda")
    depends_on("nccl@2.27:", type="run", when="+cuda")

    def setup_build_environment(self, env):
        if self.spec.satisfies("+mpi"):
            env.set("LIBCLANG_PATH", self.spec["llvm"].prefix.lib)
        if self.spec.satisfies("+cuda"):
            env.set("NVCC", self.spec["cuda"].prefix.bin.nvcc)

    def setup_run_environment(self, env):
        if self.spec.satisfies("+cuda"):
            env.set("RETORT_NCCL_LIB", join_path(self.spec["nccl"].prefix.lib, "libnccl.so.2"))

    def install(self, spec, prefix):
        which("cargo")("build", "--release", "--locked")
        mkdirp(prefix.bin)
        install("target/release/retort", prefix.bin)
        if spec.satisfies("+mpi"):
            family = "openmpi" if spec.satisfies("^[virtuals=mpi] openmpi") else "mpich"
            build = Executable("tools/build-mpi.sh")
            build.add_default_env("MPICC", spec["mpi"].mpicc)
            build(family, prefix.bin)
        install_tree("configs", prefix.share.retort.configs)
        install_tree("launch", prefix.share.retort.launch)
