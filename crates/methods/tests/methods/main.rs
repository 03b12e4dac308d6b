//! Methods without an executor: the graph they build, its value in f64 by a small interpreter, and what recipes may say.

mod evaluate;
mod needs;
mod numbers;
mod recipes;
mod structure;
