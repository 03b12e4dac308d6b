-- Module file (Lmod) of retort. Assumes this file as <modules>/retort/0.1.0.lua, and the program with its plugins, configs and launch
-- scripts below `root`; an MPI module of the plugin's family to load beside it. Set the two names for your site.
local root = pathJoin("/opt/retort", myModuleVersion())
local mpi = "openmpi"

help("Data-parallel trainer for CNN image classifiers. retort --help; launch scripts in $RETORT_ROOT/launch.")
whatis("Name: retort")
whatis("Version: " .. myModuleVersion())
whatis("Category: machine learning")

depends_on(mpi)
setenv("RETORT_ROOT", root)
prepend_path("PATH", pathJoin(root, "bin"))
-- NCCL 2.27 or newer is looked for as libnccl.so.2; name the file where it is not on the library path:
-- setenv("RETORT_NCCL_LIB", "/opt/nccl/lib/libnccl.so.2")
