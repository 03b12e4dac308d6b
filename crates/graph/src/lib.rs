//! The step as data: a closed set of coarse ops, a static graph over them, and the expressions that build it.
//!
//! Invariant: this crate knows no device, no network and no method. It holds shapes, not numbers.

mod expr;
mod gradient;
mod graph;
mod infer;
mod loss;
mod op;
mod row;
mod text;
mod verify;

pub use expr::{Builder, Expr};
pub use gradient::{Cotangents, gradient};
pub use graph::{
    BatchInput, BnUse, Graph, Init, Node, NodeId, Place, Precision, Rows, Section, SlotId, Source, State, StateId,
    StateKind, Value, ValueId,
};
pub use infer::{conv_out, infer};
pub use loss::{Commit, Loss, LossTerm, Losses, Measure, Monitor};
pub use op::{
    Axis, Binary, BnArgs, BnRunningLayer, ConvArgs, Divisor, ImageArgs, LarsArgs, MatmulArgs, Op, PoolArgs, SgdArgs,
    SgdParam, StatsSource, Unary, Weight,
};
pub use row::{MaskRule, RowKind, RowMask, RowTable, RowTableTerm, RowTerm, RowView, Side, Target, Temperature};
pub use verify::{GraphError, verify};
