//! The files of a replayed step: what is wanted, and what was given. Every fault is collected, so that one error lists them all.

use crate::engine::Engine;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::recipe::Recipe;
use crate::replay::ReplayOptions;
use crate::step::Model;
use crate::weights::{published_shape, write_state};
use cpu::Real;
use plan::Plan;
use serde::Serialize;
use spec::{Graph, Setting, StateKind, StateUse, teacher_module};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tensor::safe::{self, Tensors};
use tensor::{Dtype, HostTensor, Shape};

/// A tensor that a step wants.
#[derive(Clone, Debug, Serialize)]
pub struct WantedTensor {
    pub name: String,
    pub dtype: String,
    /// Sizes; `n` stands for the units of the batch, `m` for those of the previous one: `["2n", "3", "32", "32"]`.
    pub shape: Vec<String>,
    pub note: String,
}

/// The tensors that a step wants, per file.
#[derive(Clone, Debug, Serialize)]
pub struct Wanted {
    pub weights: Vec<WantedTensor>,
    /// One list per teacher.
    pub teachers: Vec<Vec<WantedTensor>>,
    pub batch: Vec<WantedTensor>,
}

impl Wanted {
    pub(crate) fn of(model: &Model, recipe: &Recipe) -> Result<Wanted, TrainError> {
        let previous = usize::from(model.spec.previous);
        let graph = model.training_graph([2, 2 * previous]);
        let of = |module: &str, plain: bool| -> Vec<WantedTensor> {
            let own = |name: &&spec::State| matches!(name.kind, StateKind::Param | StateKind::Buffer);
            let named = graph.states.iter().filter(own).filter_map(|s| {
                let name =
                    if plain { s.name.strip_prefix(module)? } else { s.name.starts_with(module).then_some(&s.name)? };
                Some(tensor(name, "float", published_shape(s.shape).dims().iter().map(usize::to_string).collect(), ""))
            });
            named.collect()
        };
        let mut weights = of("student.", true);
        weights.extend(of("method.", false));
        let teachers = (0..recipe.teacher.len()).map(|i| of(&(teacher_module(i) + "."), true)).collect();
        let mut batch = Vec::new();
        for input in &graph.batch {
            batch.extend(wanted_input(model, &graph, input));
        }
        for state in &model.spec.states {
            let (rows, note) = match state.usage {
                StateUse::PerSample => ("n", "rows of this batch; zeros if absent"),
                StateUse::Rolling => ("m", "with previous.image"),
            };
            let shape = [vec![rows.to_string()], state.row.iter().map(usize::to_string).collect()].concat();
            batch.push(tensor(&state.name, "float", shape, note));
        }
        Ok(Wanted { weights, teachers, batch })
    }
}

fn tensor(name: &str, dtype: &str, shape: Vec<String>, note: &str) -> WantedTensor {
    WantedTensor { name: name.to_string(), dtype: dtype.to_string(), shape, note: note.to_string() }
}

/// The tensors behind an input of the step: an image of several views is one per view.
fn wanted_input(model: &Model, graph: &Graph, input: &spec::BatchInput) -> Vec<WantedTensor> {
    let value = graph.value(input.value);
    let dims = value.shape.dims();
    let letter = |rows: usize, letter: &str| if rows == 1 { letter.to_string() } else { format!("{rows}{letter}") };
    let rows = match value.rows.0 {
        [0, 0] => None,
        [0, m] => Some(letter(m as usize, "m")),
        [n, _] => Some(letter(n as usize, "n")),
    };
    let rest = if rows.is_some() { &dims[1..] } else { dims };
    let size = |rest: &[usize]| rest.iter().map(usize::to_string).collect::<Vec<_>>();
    let first = |rows: &str| vec![rows.to_string()];
    if let [h, w, c] = *rest {
        let image = size(&[c, h, w]);
        let note = if input.name.starts_with("previous.") { "absent in a first step" } else { "normalised, NCHW" };
        if input.name == "image" && model.spec.views.len() > 1 {
            let views = model.spec.views.iter();
            return views
                .map(|v| tensor(&format!("image.{}", v.name), "float", [first("n"), image.clone()].concat(), note))
                .collect();
        }
        if [h, w] == [1, 1] {
            return vec![tensor(
                "feature",
                "float",
                [first(&rows.unwrap_or_default()), size(&[c])].concat(),
                "or image, NCHW",
            )];
        }
        return vec![tensor(&input.name, "float", [first(&rows.unwrap_or_default()), image].concat(), note)];
    }
    let (dtype, note) = match value.dtype {
        Dtype::I32 | Dtype::U8 if input.name == "label" && model.spec.rows_per_unit() > 1 => {
            ("int", "or one per unit, [n]")
        }
        Dtype::I32 => ("int", ""),
        Dtype::U8 => ("int", "0 or 1"),
        _ => ("float", ""),
    };
    vec![tensor(&input.name, dtype, [rows.into_iter().collect(), size(rest)].concat(), note)]
}

/// What the files hold, and what is wrong with it.
pub(crate) struct Given {
    weights: (PathBuf, Tensors),
    teachers: Vec<(PathBuf, Tensors)>,
    batch: (PathBuf, Tensors),
    faults: BTreeMap<PathBuf, Vec<String>>,
}

impl Given {
    pub(crate) fn read(options: &ReplayOptions) -> Result<Given, TrainError> {
        let open = |path: &PathBuf| safe::read(path).map(|(tensors, _)| (path.clone(), tensors));
        let teachers = options.teachers.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Given { weights: open(&options.weights)?, teachers, batch: open(&options.batch)?, faults: BTreeMap::new() })
    }

    /// The recipe's setting with classes, image and samples as the files have them.
    pub(crate) fn setting(&self, recipe: &Recipe, mut setting: Setting) -> Result<Setting, TrainError> {
        let network = recipe.network.build(1).map_err(|e| TrainError::Setting(e.to_string()))?;
        let rows = |name: &str| self.weights.1.get(&format!("{}.{name}", network.classifier())).map(first_axis);
        if let Some(classes) = rows("weight").filter(|&n| n > 0 && rows("bias").is_none_or(|bias| bias == n)) {
            setting.classes = classes;
        }
        // A size of zero is found when the tensor itself is looked at.
        match self.image().map(|t| t.shape().dims().to_vec()).as_deref() {
            Some(&[_, c, h, w]) if c * h * w > 0 => setting.image = [h, w, c],
            Some(&[_, c]) if c > 0 => setting.image = [1, 1, c],
            _ => {}
        }
        setting.samples = self.samples().len().max(1);
        Ok(setting)
    }

    /// The first image tensor.
    fn image(&self) -> Option<&HostTensor> {
        let named = ["image", "feature"].iter().find_map(|name| self.batch.1.get(*name));
        named.or_else(|| self.batch.1.iter().find(|(name, _)| name.starts_with("image.")).map(|(_, t)| t))
    }

    /// Different values of `index`, ascending. Memory has a row for each of them alone: a set may be far larger than a batch.
    fn samples(&self) -> Vec<i32> {
        let mut samples = self.batch.1.get("index").and_then(ints).unwrap_or_default();
        samples.sort();
        samples.dedup();
        samples
    }

    /// Units of the batch and of the previous one.
    pub(crate) fn units(&mut self, model: &Model) -> [usize; 2] {
        let views = model.spec.views.len();
        let members = model.spec.rows_per_unit() / views;
        let images = self.image().map_or(members, first_axis);
        if images == 0 || !images.is_multiple_of(members) {
            self.batch_fault(format!(
                "image: expected a multiple of {members} rows, one for each image of a unit, got {images}"
            ));
        }
        let previous = if model.spec.previous { self.previous_rows() } else { 0 };
        [(images / members).max(1), previous]
    }

    fn previous_rows(&self) -> usize {
        self.batch.1.get("previous.image").map_or(0, first_axis)
    }

    fn batch_fault(&mut self, what: String) {
        self.faults.entry(self.batch.0.clone()).or_default().push(what);
    }

    /// Every input of the step's body, in its own layout and dtype.
    pub(crate) fn inputs(&mut self, model: &Model, plan: &Plan) -> Vec<(String, HostTensor)> {
        let mut inputs = Vec::new();
        let mut used = Vec::new();
        for input in &plan.graph.batch {
            let (shape, dtype) = (plan.graph.shape(input.value), plan.graph.value(input.value).dtype);
            let found = match input.name.as_str() {
                "image" => self.images(model, shape, &mut used),
                "label" => self.labels(model, shape, &mut used),
                name => self.one(name, shape, &mut used),
            };
            let typed = found.and_then(|t| typed(&t, dtype).map_err(|why| format!("{}: {why}", input.name)));
            match typed.and_then(|t| self.in_range(model, &input.name, t)) {
                Ok(tensor) => inputs.push((input.name.clone(), tensor)),
                Err(why) => self.batch_fault(why),
            }
        }
        used.extend(model.spec.states.iter().map(|s| s.name.clone()));
        used.extend(["index", "label"].map(String::from));
        let unused: Vec<_> = self.batch.1.keys().filter(|name| !used.contains(name)).cloned().collect();
        unused.into_iter().for_each(|name| self.batch_fault(format!("{name}: the recipe's step does not want it")));
        inputs
    }

    /// The integers of an input, if they can be what it stands for; `index` as places in `samples`.
    fn in_range(&self, model: &Model, name: &str, tensor: HostTensor) -> Result<HostTensor, String> {
        let Some(values) = (tensor.dtype() == Dtype::I32).then(|| ints(&tensor)).flatten() else { return Ok(tensor) };
        let below = |n: usize, what: &str| match values.iter().find(|&&v| v >= n as i32) {
            Some(wrong) => Err(format!("{name}: expected less than {n} ({what}), got {wrong}")),
            None => Ok(()),
        };
        match name {
            "label" | "previous.label" => below(model.setting.classes, "the classes")?,
            "index" => {
                if let Some(wrong) = values.iter().find(|&&v| v < 0) {
                    return Err(format!("index: expected numbers of samples, at least 0, got {wrong}"));
                }
                let samples = self.samples();
                let places: Vec<i32> = values.iter().map(|v| samples.partition_point(|s| s < v) as i32).collect();
                return HostTensor::new(tensor.shape(), &places).map_err(|e| e.to_string());
            }
            "draw.permutation" => {
                let mut sorted = values.clone();
                sorted.sort();
                if sorted.iter().enumerate().any(|(i, &v)| v != i as i32) {
                    return Err(format!("{name}: expected each of 0 to {} once, got {values:?}", values.len() - 1));
                }
            }
            _ => {}
        }
        Ok(tensor)
    }

    fn find(&self, name: &str, used: &mut Vec<String>) -> Result<HostTensor, String> {
        used.push(name.to_string());
        self.batch.1.get(name).cloned().ok_or_else(|| format!("{name}: missing"))
    }

    fn one(&self, name: &str, shape: Shape, used: &mut Vec<String>) -> Result<HostTensor, String> {
        let found = self.find(name, used)?;
        let tensor = if shape.rank() == 4 && found.shape().rank() == 4 { nhwc(name, &found)? } else { found.clone() };
        if tensor.shape() == shape || (shape.elements() == 1 && tensor.shape().elements() == 1) {
            return HostTensor::from_bytes(tensor.dtype(), shape, tensor.bytes()).map_err(|e| format!("{name}: {e}"));
        }
        let wanted = if shape.rank() == 4 { published_image(shape) } else { shape };
        Err(format!("{name}: expected {wanted}, got {}", found.shape()))
    }

    fn images(&self, model: &Model, shape: Shape, used: &mut Vec<String>) -> Result<HostTensor, String> {
        let views = &model.spec.views;
        if views.len() == 1 {
            let name = if self.batch.1.contains_key("feature") { "feature" } else { "image" };
            let found = self.find(name, used)?;
            let vectors = found.shape().rank() == 2 && found.shape().elements() == shape.elements();
            let tensor = if vectors {
                HostTensor::from_bytes(found.dtype(), shape, found.bytes()).map_err(|e| format!("{name}: {e}"))?
            } else {
                nhwc(name, &found)?
            };
            let fits = tensor.shape() == shape;
            let wrong = || format!("{name}: expected {}, got {}", published_image(shape), found.shape());
            return if fits { Ok(tensor) } else { Err(wrong()) };
        }
        let mut values = Vec::with_capacity(shape.elements());
        for view in views {
            let name = format!("image.{}", view.name);
            let found = nhwc(&name, &self.find(&name, used)?)?;
            let one = Shape::new(&[shape[0] / views.len(), shape[1], shape[2], shape[3]]);
            if found.shape() != one {
                return Err(format!(
                    "{name}: expected {}, got {}",
                    published_image(one),
                    published_image(found.shape())
                ));
            }
            values.extend(found.to_f64().map_err(|e| format!("{name}: {e}"))?);
        }
        HostTensor::new(shape, &values).map_err(|e| e.to_string())
    }

    /// Labels of all rows; one per unit serves for all images of the unit.
    fn labels(&self, model: &Model, shape: Shape, used: &mut Vec<String>) -> Result<HostTensor, String> {
        let found = self.find("label", used)?;
        let labels = ints(&found).ok_or_else(|| format!("label: expected integers, got {}", found.dtype().name()))?;
        let rows = shape.elements();
        let per_unit = model.spec.rows_per_unit();
        let units = rows / per_unit;
        let all: Vec<i32> = if labels.len() == rows {
            labels
        } else if labels.len() == units {
            (0..rows).map(|row| if row < units { labels[row] } else { labels[of_unit(model, row, units)] }).collect()
        } else {
            return Err(format!("label: expected {rows} values, or {units} (one per unit), got {}", labels.len()));
        };
        HostTensor::new(shape, &all).map_err(|e| e.to_string())
    }

    /// Parameters and buffers of all modules.
    pub(crate) fn fill_modules<E: Executor>(&mut self, engine: &mut Engine<E>) {
        let mut entries: Vec<_> = engine.states.entries.clone();
        entries.retain(|e| matches!(e.kind, StateKind::Param | StateKind::Buffer));
        let teachers = std::mem::take(&mut self.teachers).into_iter().enumerate();
        let teachers = teachers.map(|(i, file)| (file, teacher_module(i) + "."));
        let student = (std::mem::take(&mut self.weights), "student.".to_string());
        for ((path, mut tensors), module) in std::iter::once(student).chain(teachers) {
            let mut faults = Vec::new();
            let student = module == "student.";
            for entry in &entries {
                let name = entry
                    .name
                    .strip_prefix(&module)
                    .or_else(|| (student && entry.name.starts_with("method.")).then_some(&entry.name));
                let Some(name) = name else { continue };
                match tensors.remove(name) {
                    None => faults.push(format!("{name}: missing, expected {}", published_shape(entry.shape))),
                    Some(t) => faults
                        .extend(write_state(&mut engine.executor, entry, &t).err().map(|why| format!("{name}: {why}"))),
                }
            }
            let extra = tensors.keys().filter(|name| !name.ends_with("num_batches_tracked"));
            faults.extend(extra.map(|name| format!("{name}: no tensor of this network")));
            if !faults.is_empty() {
                self.faults.entry(path).or_default().extend(faults);
            }
        }
    }

    /// Rows of memory and of the rolling state.
    pub(crate) fn fill_memory<E: Executor>(
        &mut self,
        model: &Model,
        engine: &mut Engine<E>,
        index: &[i32],
    ) -> Result<(), TrainError> {
        for state in &model.spec.states {
            let Some(entry) = engine.states.find(&format!("method.{}", state.name)).cloned() else { continue };
            let width: usize = state.row.iter().product();
            let Some(given) = self.batch.1.get(&state.name) else {
                if state.usage == StateUse::Rolling && self.batch.1.contains_key("previous.image") {
                    self.batch_fault(format!("{}: missing, it belongs to previous.image", state.name));
                }
                continue;
            };
            let rows: Vec<usize> = match state.usage {
                StateUse::PerSample => index.iter().map(|&i| i as usize).collect(),
                StateUse::Rolling => (0..self.previous_rows()).collect(),
            };
            let expected = Shape::new(&[&[rows.len()], &state.row[..]].concat());
            let values = given.to_f64();
            let (true, Ok(values)) = (given.shape() == expected, values) else {
                self.batch_fault(format!("{}: expected {expected}, got {}", state.name, given.shape()));
                continue;
            };
            let mut all = engine.executor.state(entry.offset, entry.shape.elements())?;
            for (row, values) in rows.iter().zip(values.chunks(width)) {
                all[row * width..(row + 1) * width].iter_mut().zip(values).for_each(|(s, &v)| *s = E::Real::of(v));
            }
            engine.executor.set_state(entry.offset, &all)?;
        }
        Ok(())
    }

    /// All that is wrong, as one error.
    pub(crate) fn finish(&self) -> Result<(), TrainError> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let file = |(path, faults): (&PathBuf, &Vec<String>)| format!("{}:\n  {}", path.display(), faults.join("\n  "));
        let all: Vec<_> = self.faults.iter().map(file).collect();
        let count: usize = self.faults.values().map(Vec::len).sum();
        Err(TrainError::Setting(format!(
            "{count} tensor{} missing or misshapen; `retort step RECIPE --describe` lists what is wanted\n{}",
            if count == 1 { " is" } else { "s are" },
            all.join("\n")
        )))
    }
}

/// Unit of a row beyond the first of each unit: views follow each other, partners are grouped by anchor.
fn of_unit(model: &Model, row: usize, units: usize) -> usize {
    match model.spec.sampler {
        spec::Sampler::Pairs { partners, .. } => (row - units) / partners,
        spec::Sampler::Shuffle => row % units,
    }
}

/// [n,h,w,c] as files have it: [n,c,h,w].
pub(crate) fn published_image(shape: Shape) -> Shape {
    Shape::new(&[shape[0], shape[3], shape[1], shape[2]])
}

fn nhwc(name: &str, image: &HostTensor) -> Result<HostTensor, String> {
    if image.shape().rank() != 4 {
        return Err(format!("{name}: an image has four axes, NCHW, got {}", image.shape()));
    }
    image.permute4([0, 2, 3, 1]).map_err(|e| format!("{name}: {e}"))
}

/// Size of the first axis; 0 for a number.
fn first_axis(tensor: &HostTensor) -> usize {
    tensor.shape().dims().first().copied().unwrap_or(0)
}

/// Integers of any width.
fn ints(tensor: &HostTensor) -> Option<Vec<i32>> {
    match tensor.dtype() {
        Dtype::I32 => tensor.view::<i32>().ok().map(<[i32]>::to_vec),
        Dtype::I64 => tensor.view::<i64>().ok()?.iter().map(|&x| i32::try_from(x).ok()).collect(),
        Dtype::U8 => tensor.view::<u8>().ok().map(|v| v.iter().map(|&x| x.into()).collect()),
        _ => None,
    }
}

/// The tensor in the dtype that the step reads; floats are converted when they are set.
fn typed(tensor: &HostTensor, dtype: Dtype) -> Result<HostTensor, String> {
    let wrong = || format!("expected {}, got {}", dtype.name(), tensor.dtype().name());
    match dtype {
        Dtype::I32 => HostTensor::new(tensor.shape(), &ints(tensor).ok_or_else(wrong)?).map_err(|e| e.to_string()),
        Dtype::U8 => {
            let values = ints(tensor).ok_or_else(wrong)?.into_iter().map(u8::try_from).collect::<Result<Vec<_>, _>>();
            HostTensor::new(tensor.shape(), &values.map_err(|_| wrong())?).map_err(|e| e.to_string())
        }
        _ if tensor.dtype().is_float() => Ok(tensor.clone()),
        _ => Err(wrong()),
    }
}
