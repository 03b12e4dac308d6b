//! Batches: layout, draws, policies on bad samples, and the threads that make them ahead.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Memory, epoch, error, key, labels, spec};
use data::{
    Augment, Batch, BatchSpec, CellRule, DataError, Dataset, Deal, DrawData, DrawKind, DrawSpec, EpochKey, LastBatch,
    Loader, Meta, Micro, OnBad, PairRule, Prefetch, Purpose, RawImage, Sampler,
};

const PAIRS: Sampler = Sampler::Pairs { rule: PairRule::WithSelf, partners: 1 };

fn micro(number: u32, first_slot: u32, units: u32) -> Micro {
    Micro { step: number, leaf: 0, number, first_slot, units }
}

fn draw(name: &str, kind: DrawKind) -> DrawSpec {
    DrawSpec { name: name.into(), kind }
}

fn mask(cells: usize, gate: f64, rule: CellRule) -> DrawSpec {
    draw("swap_mask", DrawKind::CellMask { cells, gate, rule })
}

fn i32s<'b>(batch: &'b Batch, name: &str) -> &'b [i32] {
    match &batch.draws[name] {
        DrawData::I32(values) => values,
        other => panic!("{name} is {other:?}"),
    }
}

fn u8s<'b>(batch: &'b Batch, name: &str) -> &'b [u8] {
    match &batch.draws[name] {
        DrawData::U8(values) => values,
        other => panic!("{name} is {other:?}"),
    }
}

/// One micro-batch of the first epoch.
fn batch(set: Memory, spec: BatchSpec, sampler: Sampler, micro: Micro) -> Batch {
    let epoch = epoch(&set, sampler, 1);
    Loader::new(Arc::new(set), spec).unwrap().batch(&epoch, &micro).unwrap()
}

#[test]
fn pairs_are_laid_out_anchors_first() {
    let set = Memory::new(&labels(), 3, [5, 4]);
    let order = epoch(&set, PAIRS, 1);
    let got = batch(Memory::new(&labels(), 3, [5, 4]), spec(Augment::PadCropFlip { pad: 4 }), PAIRS, micro(1, 8, 6));
    assert_eq!((got.shape, got.images.len(), got.labels.len()), ([12, 5, 4, 3], 12 * 60, 6));
    for unit in 0..6 {
        for (role, index) in order.members(8 + unit as u32).into_iter().enumerate() {
            let row = role * 6 + unit;
            assert_eq!(got.index[row], index as i32);
            assert_eq!(got.images[row * 60..][..60], set.image(index as usize).pixels);
            assert_eq!(got.row_labels[row], set.labels()[index as usize] as i32);
            assert_eq!(got.row_labels[row], got.labels[unit]);
        }
    }
    assert_eq!(got.weight, [1.0; 12]);
    assert!(got.bad.is_empty());
}

#[test]
fn crops_and_flips_are_drawn_per_image() {
    let got = batch(Memory::new(&labels(), 1, [4, 4]), spec(Augment::PadCropFlip { pad: 4 }), PAIRS, micro(0, 0, 41));
    let (crop, flip) = (i32s(&got, "crop"), i32s(&got, "flip"));
    assert_eq!((crop.len(), flip.len()), (164, 82));
    // Slots 8 to 11, role 1, by an independent implementation.
    assert_eq!(crop[2 * (41 + 8)..][..8], [1, 7, 1, 1, 8, 2, 1, 2]);
    assert_eq!(flip[41 + 8..][..4], [1, 1, 1, 1]);
    assert!(crop.iter().all(|c| (0..=8).contains(c)) && flip.iter().all(|f| (0..=1).contains(f)));
    assert_eq!(crop.iter().collect::<BTreeSet<_>>().len(), 9);
    let mirrored: i32 = flip.iter().sum();
    assert!((25..57).contains(&mirrored), "{mirrored}");
    // A partner that is its own anchor has its own crop.
    let own: Vec<usize> = (0..41).filter(|&u| got.index[u] == got.index[41 + u]).collect();
    assert!(own.iter().any(|&u| crop[2 * u..][..2] != crop[2 * (41 + u)..][..2]), "{own:?}");
    // No flip asked for, none drawn.
    let plain = batch(Memory::new(&labels(), 1, [4, 4]), spec(Augment::PadCrop { pad: 4 }), PAIRS, micro(0, 0, 41));
    assert_eq!((i32s(&plain, "crop"), plain.draws.contains_key("flip")), (crop, false));
    let bare = batch(Memory::new(&labels(), 1, [4, 4]), spec(Augment::None), PAIRS, micro(0, 0, 41));
    assert!(bare.draws.is_empty());
}

#[test]
fn views_share_the_image_and_not_the_draws() {
    let sampler = Sampler::Views { views: 2 };
    let set = Memory::new(&labels(), 1, [4, 4]);
    let reads = set.reads.clone();
    let got = batch(set, spec(Augment::PadCropFlip { pad: 2 }), sampler, micro(0, 0, 20));
    assert_eq!(reads.load(Ordering::Relaxed), 20);
    assert_eq!(got.index[..20], got.index[20..]);
    assert_eq!(got.images[..320], got.images[320..]);
    let crop = i32s(&got, "crop");
    assert_ne!(crop[..40], crop[40..]);
}

/// Image 17 is alone in its class, so that its partners are itself: four rows, one decode.
#[test]
fn a_pair_of_one_image_is_read_once() {
    let sampler = Sampler::Pairs { rule: PairRule::WithoutSelf, partners: 3 };
    let set = Memory::new(&labels(), 1, [4, 4]);
    let slot = (0..41).find(|&slot| epoch(&set, sampler, 1).members(slot)[0] == 17).unwrap();
    let reads = set.reads.clone();
    let got = batch(set, spec(Augment::None), sampler, micro(0, slot, 1));
    assert_eq!((got.index, reads.load(Ordering::Relaxed)), (vec![17; 4], 1));
}

/// IdentityBatch with three extra images: all anchors, then the partners grouped by anchor.
#[test]
fn identity_batch_of_three_partners() {
    let sampler = Sampler::Pairs { rule: PairRule::WithoutSelf, partners: 3 };
    let set = || Memory::new(&labels(), 1, [4, 4]);
    let order = epoch(&set(), sampler, 1);
    let got = batch(set(), spec(Augment::PadCropFlip { pad: 4 }), sampler, micro(0, 3, 5));
    assert_eq!((got.shape, got.labels.len()), ([20, 4, 4, 1], 5));
    for unit in 0..5 {
        let rows = [vec![unit], (5 + 3 * unit..8 + 3 * unit).collect()].concat();
        let index: Vec<u32> = rows.iter().map(|&row| got.index[row] as u32).collect();
        assert_eq!(index, order.members(3 + unit as u32));
        assert!(rows.iter().all(|&row| got.row_labels[row] == got.labels[unit]));
        assert!(rows.iter().all(|&row| got.images[row * 16..][..16] == set().image(got.index[row] as usize).pixels));
    }
}

fn masked(gate: f64, rule: CellRule, units: u32) -> Batch {
    let draws = vec![mask(16, gate, rule)];
    let labels = vec![0; units as usize];
    batch(Memory::new(&labels, 1, [2, 2]), BatchSpec { draws, ..spec(Augment::None) }, PAIRS, micro(0, 0, units))
}

#[test]
fn masks_are_pinned_and_follow_gate_and_rule() {
    let rows = |batch: &Batch| u8s(batch, "swap_mask").chunks(16).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let ones = |row: &[u8]| row.iter().map(|&b| usize::from(b)).sum::<usize>();
    let half = rows(&masked(0.5, CellRule::Probability(0.5), 4000));
    // Slot 5 of epoch 2, by an independent implementation.
    let draws = vec![mask(16, 0.5, CellRule::Probability(0.5))];
    let set = Memory::new(&[0; 8], 1, [2, 2]);
    let second = epoch(&set, PAIRS, 2);
    let loader = Loader::new(Arc::new(set), BatchSpec { draws, ..spec(Augment::None) }).unwrap();
    let pinned = loader.batch(&second, &micro(0, 5, 1)).unwrap();
    assert_eq!(u8s(&pinned, "swap_mask"), [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);

    let open = half.iter().filter(|row| ones(row) > 0).count();
    assert!(open.abs_diff(2000) < 160, "{open}");
    let cells: usize = half.iter().map(|row| ones(row)).sum();
    assert!(cells.abs_diff(2000 * 8) < 1300, "{cells}");
    // The mask's numbers are consumed whether or not the gate is open: open rows are those of an open gate.
    let always = rows(&masked(1.0, CellRule::Probability(0.5), 4000));
    assert!(half.iter().zip(&always).all(|(h, a)| ones(h) == 0 || h == a));
    assert!(rows(&masked(0.0, CellRule::Probability(0.5), 100)).iter().all(|row| ones(row) == 0));
    assert!(rows(&masked(1.0, CellRule::Count(5), 100)).iter().all(|row| ones(row) == 5));
    let counts: BTreeSet<usize> =
        rows(&masked(1.0, CellRule::UniformCount, 1000)).iter().map(|row| ones(row)).collect();
    assert_eq!(counts, (1..16).collect());
}

#[test]
fn micro_batch_draws_are_keyed_by_its_number() {
    let draws = vec![draw("order", DrawKind::Permutation), draw("mix", DrawKind::Lambda { alpha: 0.2 })];
    let make = |number, first_slot, units| {
        let spec = BatchSpec { draws: draws.clone(), pad_units: 10, ..spec(Augment::None) };
        batch(Memory::new(&labels(), 1, [2, 2]), spec, Sampler::Shuffle, micro(number, first_slot, units))
    };
    let (first, moved, other) = (make(3, 24, 8), make(3, 16, 8), make(4, 24, 8));
    assert_eq!((&first.draws["order"], &first.draws["mix"]), (&moved.draws["order"], &moved.draws["mix"]));
    assert_ne!(first.draws["mix"], other.draws["mix"]);
    let mut order = i32s(&first, "order").to_vec();
    assert_eq!(order[8..], [8, 9], "padding stays where it is");
    order.sort_unstable();
    assert_eq!(order, (0..10).collect::<Vec<_>>());
    let expected = EpochKey { ..key(1) }.stream(Purpose::named("mix"), 3, 0).beta(0.2, 0.2) as f32;
    assert_eq!(first.draws["mix"], DrawData::F32(expected));
}

#[test]
fn padding_has_weight_zero() {
    let set = || Memory::new(&labels(), 1, [2, 2]);
    let padded = BatchSpec { pad_units: 16, ..spec(Augment::None) };
    let got = batch(set(), padded, Sampler::Sequential, micro(2, 32, 9));
    assert_eq!((got.shape[0], got.labels.len(), got.micro.units), (16, 16, 9));
    assert_eq!(got.index[..9], (32..41).collect::<Vec<_>>()[..]);
    assert_eq!(got.weight, [vec![1.0; 9], vec![0.0; 7]].concat());
    assert!(got.images[9 * 4..].iter().all(|&p| p == 0));
    assert_eq!(got.images[..9 * 4], batch(set(), spec(Augment::None), Sampler::Sequential, micro(2, 32, 9)).images);
}

#[test]
fn images_of_many_sizes_are_cropped_and_resized() {
    let set = || Memory::growing(&labels(), 3, [20, 14], 7);
    let crop = Augment::RandomResizedCropFlip { size: 8, scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0] };
    let got = batch(set(), spec(crop), Sampler::Views { views: 2 }, micro(0, 0, 10));
    assert_eq!((got.shape, i32s(&got, "flip").len()), ([20, 8, 8, 3], 20));
    assert_ne!(got.images[..10 * 192], got.images[10 * 192..]);
    let central =
        batch(set(), spec(Augment::ResizeCenterCrop { resize: 10, size: 8 }), Sampler::Sequential, micro(0, 0, 10));
    assert_eq!((central.shape, central.draws.len()), ([10, 8, 8, 3], 0));
    // Cropping without resizing is exact: the shorter side is already 14.
    let exact =
        batch(set(), spec(Augment::ResizeCenterCrop { resize: 14, size: 8 }), Sampler::Sequential, micro(0, 0, 1));
    let source = set().image(0);
    let row = |r: usize| source.pixels[((6 + r) * 14 + 3) * 3..][..24].to_vec();
    assert_eq!(exact.images, (0..8).flat_map(row).collect::<Vec<_>>());
}

#[test]
fn bad_samples_follow_the_policy() {
    let set = || {
        let mut set = Memory::new(&labels(), 1, [2, 2]);
        set.bad.extend([(3, "torn"), (9, "grey half")]);
        set
    };
    let with = |on_bad| BatchSpec { on_bad, ..spec(Augment::PadCrop { pad: 1 }) };
    let run = |on_bad| batch(set(), with(on_bad), Sampler::Sequential, micro(0, 0, 12));
    let ledger = |batch: &Batch| batch.bad.iter().map(|b| (b.index, b.epoch, b.reason.clone())).collect::<Vec<_>>();

    let skipped = run(OnBad::Skip);
    assert_eq!(ledger(&skipped), [(3, 1, "torn".into()), (9, 1, "grey half".into())]);
    assert_eq!((skipped.weight[3], skipped.weight[4], skipped.index[3]), (0.0, 1.0, 3));
    assert!(skipped.images[12..16].iter().all(|&p| p == 0));

    let replaced = run(OnBad::Substitute);
    assert_eq!((ledger(&replaced), &replaced.weight), (ledger(&skipped), &vec![1.0; 12]));
    for row in [3, 9] {
        let taken = replaced.index[row] as usize;
        assert!(![3, 9].contains(&taken) && set().labels()[taken] == set().labels()[row]);
        assert_eq!(replaced.images[row * 4..][..4], set().image(taken).pixels);
    }
    // The choice depends on the sample alone, and other rows and all draws are untouched.
    assert_eq!(run(OnBad::Substitute), replaced);
    assert_eq!(replaced.draws, skipped.draws);
    let later = batch(set(), with(OnBad::Substitute), Sampler::Sequential, micro(0, 3, 1));
    assert_eq!(later.index[0], replaced.index[3]);

    let order = epoch(&set(), Sampler::Sequential, 0);
    let fails = Loader::new(Arc::new(set()), with(OnBad::Fail)).unwrap().batch(&order, &micro(0, 0, 12));
    assert_eq!(error(fails), "sample 3 (memory 3): torn");
    let mut lonely = set();
    lonely.bad.insert(17, "alone in its class");
    let stuck = Loader::new(Arc::new(lonely), with(OnBad::Substitute)).unwrap().batch(&order, &micro(0, 10, 10));
    assert!(error(stuck).contains("tries for another image of its class failed"));
}

#[test]
fn wrong_settings_are_refused() {
    let check =
        |grows, spec: BatchSpec| error(Loader::new(Arc::new(Memory::growing(&labels(), 1, [4, 4], grows)), spec));
    let with = |draws| BatchSpec { draws, ..spec(Augment::None) };
    assert!(check(3, spec(Augment::PadCrop { pad: 4 })).contains("images of one size"));
    assert!(check(3, spec(Augment::None)).contains("images of one size"));
    assert!(check(0, spec(Augment::PadCrop { pad: usize::MAX })).contains("out of range"));
    assert!(check(0, spec(Augment::ResizeCenterCrop { resize: 4, size: 5 })).contains("out of range"));
    let crop = |scale, ratio| spec(Augment::RandomResizedCropFlip { size: 4, scale, ratio });
    assert!(check(0, crop([0.0, 1.0], [1.0, 1.0])).contains("out of range"));
    assert!(check(0, crop([0.5, 1.0], [1.0, f64::NAN])).contains("out of range"));
    assert!(check(0, with(vec![draw("crop", DrawKind::Permutation)])).contains("belongs to the augmentation"));
    assert!(check(0, with(vec![draw("a", DrawKind::Permutation), draw("a", DrawKind::Permutation)])).contains("taken"));
    for wrong in [
        mask(16, 1.5, CellRule::Count(3)),
        mask(16, 0.5, CellRule::Count(17)),
        mask(1, 0.5, CellRule::UniformCount),
        mask(0, 0.5, CellRule::Probability(0.5)),
        draw("l", DrawKind::Lambda { alpha: -1.0 }),
        draw("b", DrawKind::CutBox { alpha: f64::NAN, size: [4, 4] }),
        draw("b", DrawKind::CutBox { alpha: 1.0, size: [4, 5] }),
        draw("s", DrawKind::CutShare { alpha: f64::INFINITY, size: [4, 4] }),
        draw("c", DrawKind::Cutout { side: 5, size: [4, 4] }),
        draw("c", DrawKind::Cutout { side: 1, size: [4, 4] }),
        draw("e", DrawKind::Erase { p: 1.5, size: [4, 4] }),
        draw("e", DrawKind::Erase { p: 0.5, size: [0, 4] }),
    ] {
        let message = check(0, with(vec![wrong.clone()]));
        assert!(message.contains(&format!("draw \"{}\"", wrong.name)) && message.contains("out of range"), "{message}");
    }
}

/// A run of two ranks or one yields the same micro-batches, whatever the threads.
#[test]
fn prefetching_is_deterministic() {
    let mut set = Memory::new(&labels(), 3, [6, 6]);
    set.bad.insert(5, "torn");
    let draws = vec![mask(4, 0.5, CellRule::Probability(0.5)), draw("order", DrawKind::Permutation)];
    let on_bad = OnBad::Substitute;
    let spec = BatchSpec { draws, on_bad, ..spec(Augment::PadCropFlip { pad: 2 }) };
    let order = Arc::new(epoch(&set, PAIRS, 7));
    let loader = Arc::new(Loader::new(Arc::new(set), spec).unwrap());
    let deal = Deal::new(order.units(), 8, 2, LastBatch::Keep).unwrap();
    let micros = |rank, world| (0..deal.steps()).flat_map(|step| deal.deal(step, rank, world)).collect::<Vec<_>>();
    let run = |micros: Vec<Micro>, workers, ahead| {
        let threads = Prefetch::new(loader.clone(), order.clone(), micros, workers, ahead).unwrap();
        threads.map(Result::unwrap).collect::<Vec<_>>()
    };
    let direct: Vec<Batch> = micros(0, 1).iter().map(|micro| loader.batch(&order, micro).unwrap()).collect();
    assert_eq!(direct.len(), 21);
    for (workers, ahead) in [(0, 0), (1, 2), (3, 1), (40, 0)] {
        assert_eq!(run(micros(0, 1), workers, ahead), direct);
    }
    let mut halves = [run(micros(0, 2), 2, 1), run(micros(1, 2), 3, 1)].concat();
    halves.sort_by_key(|batch| batch.micro.number);
    assert_eq!(halves, direct);
    assert_eq!(run(Vec::new(), 2, 1), []);
}

#[test]
fn prefetching_delivers_errors_in_order_and_ends_when_dropped() {
    let mut set = Memory::new(&labels(), 1, [2, 2]);
    set.bad.insert(9, "torn");
    let order = Arc::new(epoch(&set, Sampler::Sequential, 0));
    let loader = Arc::new(Loader::new(Arc::new(set), spec(Augment::None)).unwrap());
    let micros: Vec<Micro> = (0..10).map(|n| micro(n, 4 * n, 4)).collect();
    let mut threads = Prefetch::new(loader.clone(), order.clone(), micros.clone(), 3, 1).unwrap();
    assert!(threads.next().unwrap().is_ok() && threads.next().unwrap().is_ok());
    assert_eq!(error(threads.next().unwrap()), "sample 9 (memory 9): torn");
    assert_eq!(threads.next().unwrap().unwrap().micro, micros[3]);
    assert!(threads.waited().as_nanos() > 0);
    // Workers are still waiting to send; dropping must release and join them.
    drop(threads);
    assert_eq!((Arc::strong_count(&loader), Arc::strong_count(&order)), (1, 1));
}

/// A set whose second image is read once somebody opens the gate.
struct Gated {
    set: Memory,
    gate: Mutex<Receiver<()>>,
}

impl Dataset for Gated {
    fn meta(&self) -> &Meta {
        self.set.meta()
    }
    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        if index == 1 {
            self.gate.lock().unwrap().recv().expect("the test opens the gate");
        }
        self.set.read(index, image)
    }
    fn place(&self, index: usize) -> String {
        self.set.place(index)
    }
}

/// The reader is told of the wait again and again; what it is told here opens the gate, so nothing but the wait ends it.
#[test]
fn the_reader_is_told_of_a_batch_that_does_not_come() {
    let set = Memory::new(&labels(), 1, [2, 2]);
    let order = Arc::new(epoch(&set, Sampler::Sequential, 0));
    let (open, gate) = channel();
    let loader = Arc::new(Loader::new(Arc::new(Gated { set, gate: Mutex::new(gate) }), spec(Augment::None)).unwrap());
    let (told, tells) = channel();
    let every = Duration::from_millis(1);
    let micros: Vec<Micro> = (0..3).map(|n| micro(n, n, 1)).collect();
    let mut threads = Prefetch::new(loader, order, micros, 1, 1).unwrap().when_late(every, move |micro, waited| {
        if micro.number == 1 {
            told.send(waited).unwrap();
            if waited == 3 * every {
                open.send(()).unwrap();
            }
        }
    });
    assert!(threads.all(|batch| batch.is_ok()));
    let tells: Vec<Duration> = tells.try_iter().collect();
    assert_eq!(tells[..3], [every, 2 * every, 3 * every]);
    assert!(threads.waited() >= 3 * every);
}

/// An epoch beyond its end makes a worker panic: the reader gets an error, not a hang.
#[test]
fn a_worker_that_panics_is_an_error() {
    let set = Memory::new(&labels(), 1, [2, 2]);
    let order = Arc::new(epoch(&set, Sampler::Shuffle, 0));
    let loader = Arc::new(Loader::new(Arc::new(set), spec(Augment::None)).unwrap());
    let mut threads = Prefetch::new(loader, order, vec![micro(0, 40, 1), micro(1, 41, 4)], 1, 1).unwrap();
    assert!(threads.next().unwrap().is_ok());
    assert!(error(threads.next().unwrap()).contains("micro-batch 1"));
    assert!(threads.next().is_none());
}
