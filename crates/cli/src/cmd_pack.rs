//! `retort pack`.

use crate::error::CliError;
use crate::output::Terminal;
use clap::{Args, ValueEnum};
use data::{Holdout, PackCodec, PackSettings, Source, SourceSpec, Split};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use train::Exit;

const EXAMPLES: &str = "\
Examples:
  retort pack --set fashion --from fashion-mnist --split train --to packed/train.pack
  retort pack --set folder --from images --split test --to packed/test.pack --codec file

Unreadable images are left out and listed. Recipes use the folder: set = \"packed\", folder = \"packed\".";

/// Images to one packed file with checksums
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PackArgs {
    /// fashion, cifar10, cifar100, folder (split/class/image) or packed
    #[arg(long, value_name = "NAME")]
    set: String,
    /// Where the set lies
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// train, val or test
    #[arg(long, default_value_t = Split::Train)]
    split: Split,
    /// The packed file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// How images are stored
    #[arg(long, value_enum, default_value_t = CodecArg::Deflate)]
    codec: CodecArg,
    /// Resize so that the shorter side has so many pixels; not with --codec file
    #[arg(long, value_name = "N")]
    short_side: Option<usize>,
    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CodecArg {
    /// Pixels: the fastest to read
    Raw,
    /// The shortest lossless coding, image by image
    Deflate,
    /// JPEG and PNG files as they are
    File,
}

pub(crate) fn run(args: &PackArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let spec =
        SourceSpec { set: args.set.clone(), folder: args.from.clone(), split: args.split, holdout: Holdout::default() };
    let Source { dataset, stats } = Source::open(&spec)?;
    let codec = match args.codec {
        CodecArg::Raw => PackCodec::Raw,
        CodecArg::Deflate => PackCodec::Deflate,
        CodecArg::File => PackCodec::File,
    };
    let settings = PackSettings { codec, short_side: args.short_side, stats };
    let bar = if args.quiet { ProgressBar::hidden() } else { ProgressBar::new(dataset.len() as u64) };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} images {per_sec} eta {eta}") {
        bar.set_style(style);
    }
    let report = data::pack(dataset.as_ref(), &settings, &args.to, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    for bad in &report.bad {
        terminal.note(format!("left out: {} ({}): {}", bad.place, bad.class, bad.reason));
    }
    let (to, left_out) = (args.to.display(), report.bad.len());
    terminal.print(format!("{to}: {} images, {} bytes, {left_out} left out", report.packed, report.bytes))?;
    Ok(Exit::Done)
}
