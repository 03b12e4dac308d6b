//! A network's graph alone, and counts of what is in it.

use nets::NetworkSpec;
use spec::{
    BatchInput, BnMode, Builder, Expr, Graph, Net, Network, Node, Op, Precision, Rows, Source, StateKind, Taps, Value,
};
use tensor::{Dtype, Shape};

/// What a built network looks like.
pub(crate) struct Built {
    pub(crate) graph: Graph,
    /// Shapes of stages and pooled.
    pub(crate) taps: Vec<Shape>,
    /// Op behind each stage tap.
    pub(crate) tap_ops: Vec<Op>,
}

/// One image, or one in each group of the batch norms.
pub(crate) fn build(spec: &NetworkSpec, classes: usize, image: [usize; 3], bn: BnMode) -> Built {
    build_with(spec, classes, image, (bn, |_, _, _| ()))
}

/// As `build`, with more in the graph: the network, the builder and the taps are given.
pub(crate) fn build_with(
    spec: &NetworkSpec,
    classes: usize,
    [h, w, c]: [usize; 3],
    (bn, more): (BnMode, impl FnOnce(&dyn Network, &Builder, &Taps<'_>)),
) -> Built {
    let n = if let BnMode::Train { groups } = bn { groups } else { 1 };
    let mut graph = Graph::new(Precision::F32, [n, 0]);
    let (shape, source) = (Shape::new(&[n, h, w, c]), Source::Batch(0));
    let value = graph.add_value(Value { shape, dtype: Dtype::F32, rows: Rows([1, 0]), source });
    graph.batch.push(BatchInput { name: "image".into(), value });
    let builder = Builder::new(graph);
    let network = spec.build(classes).unwrap();
    let taps = network.build(&Net::new(&builder, "student", bn), builder.expr(value));
    assert_eq!(taps.logits.shape(), Shape::new(&[n, classes]), "{}", spec.name);
    more(network.as_ref(), &builder, &taps);
    let op = |t: &Expr<'_>| builder.graph().producer(t.id()).unwrap().op.clone();
    let tap_ops = taps.stages.iter().map(op).collect();
    let taps = taps.stages.iter().chain([&taps.pooled]).map(|t| t.shape()).collect();
    let graph = builder.finish();
    spec::verify(&graph, "build").unwrap();
    Built { graph, taps, tap_ops }
}

pub(crate) fn train(name: &str, classes: usize, side: usize) -> Built {
    build(&NetworkSpec::new(name), classes, [side, side, 3], BnMode::Train { groups: 1 })
}

/// Multiply-adds of convolutions and linear layers for the one image of the graph.
pub(crate) fn macs(graph: &Graph) -> usize {
    let cost = |node: &Node| match node.op {
        Op::Conv(_) => graph.shape(node.inputs[1]).dims()[1..].iter().product(),
        Op::Matmul(_) => graph.shape(node.inputs[1])[1],
        _ => 0,
    };
    graph.nodes.iter().map(|node| cost(node) * graph.shape(node.outputs[0]).elements()).sum()
}

pub(crate) fn params(graph: &Graph, only: impl Fn(&str) -> bool) -> usize {
    let params = graph.states.iter().filter(|s| s.kind == StateKind::Param && only(&s.name));
    params.map(|s| s.shape.elements()).sum()
}

pub(crate) fn count(graph: &Graph, op: impl Fn(&Op) -> bool) -> usize {
    graph.nodes.iter().filter(|n| op(&n.op)).count()
}

/// Shape of a state of the student; filters are KRSC.
pub(crate) fn shape(graph: &Graph, state: &str) -> Option<Vec<usize>> {
    let id = graph.find_state(&format!("student.{state}"))?;
    Some(graph.state(id).shape.dims().to_vec())
}

/// The node that reads this parameter of the student.
pub(crate) fn reader<'a>(graph: &'a Graph, state: &str) -> &'a Node {
    let id = graph.find_state(&format!("student.{state}")).expect(state);
    let reads = |n: &&Node| n.inputs.iter().any(|&v| graph.value(v).source == Source::State(id));
    graph.nodes.iter().find(reads).expect(state)
}

/// The op that makes input `i` of a node.
pub(crate) fn source_of<'a>(graph: &'a Graph, node: &Node, i: usize) -> &'a Node {
    graph.producer(node.inputs[i]).expect("made by a node")
}
