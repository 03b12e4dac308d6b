//! The executor against a driver: the stand-in's where LD_LIBRARY_PATH names its folder, a real one where there is one.

mod gate;
mod machine;
mod memory;
mod methods;
mod nodes;
mod ops;
mod steps;
