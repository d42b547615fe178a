//! Renders sample pictures, so that the example needs no pictures to be shown.

use std::{
    f32::consts::TAU,
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use image::{
    RgbImage,
    codecs::{
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType, PngEncoder},
    },
};

const WIDTH: usize = 2000;
const HEIGHT: usize = 1500;

/// What is on the pictures.
const MOTIFS: [(&str, Motif); 4] = [("hills", hills), ("rings", rings), ("waves", waves), ("weave", weave)];

/// The light they stand in: how bright the palette is, per colour.
const LIGHTS: [(&str, [f32; 3]); 3] =
    [("dawn", [1.0, 0.8, 0.75]), ("noon", [1.0, 1.0, 1.0]), ("dusk", [0.5, 0.45, 0.75])];

/// Throws the dice and answers with the tint, an index into the palette, of each column and row.
type Motif = fn(&mut Dice) -> Tints;
type Tints = Box<dyn Fn(usize, usize) -> u8>;

/// Render `count` different pictures into a tree below `dir`, on all cores; the same ones every time.
///
/// `go_on` is asked before each picture; its error ends this after the pictures that are under way.
pub(crate) fn render(
    dir: &Path,
    count: usize,
    go_on: impl Fn() -> Result<(), String> + Sync,
) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(());
            }
            go_on()?;
            let path = dir.join(name(index));
            render_one(&path, index).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
    };
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a renderer panicked".into())))
    })
}

/// `hills/dawn/0.jpg`, `rings/dawn/0.jpg`, …, `hills/dawn/0.png`, …, `hills/noon/1.jpg`, …
fn name(index: usize) -> PathBuf {
    let (motif, _) = MOTIFS[index % MOTIFS.len()];
    let ending = if index / MOTIFS.len() % 2 == 0 { "jpg" } else { "png" };
    let number = index / MOTIFS.len() / 2;
    let (light, _) = LIGHTS[number % LIGHTS.len()];
    format!("{motif}/{light}/{number}.{ending}").into()
}

fn render_one(path: &Path, index: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut dice = Dice(index as u64);
    let (_, motif) = MOTIFS[index % MOTIFS.len()];
    let (_, light) = LIGHTS[index / MOTIFS.len() / 2 % LIGHTS.len()];
    let (tint, palette) = (motif(&mut dice), palette(&mut dice, light));

    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        pixels.extend((0..WIDTH).flat_map(|x| palette[usize::from(tint(x, y))]));
    }
    let image = RgbImage::from_raw(WIDTH as u32, HEIGHT as u32, pixels).expect("three bytes a pixel");

    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let mut file = BufWriter::new(fs::File::create(path)?);
    if path.extension().is_some_and(|ending| ending == "png") {
        image.write_with_encoder(PngEncoder::new_with_quality(
            &mut file,
            CompressionType::Fast,
            FilterType::Up,
        ))?;
    } else {
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut file, 85))?;
    }
    file.into_inner()?; // flushes, and says so if it cannot
    Ok(())
}

/// Six ridges, one behind the other, under a sky.
fn hills(dice: &mut Dice) -> Tints {
    let ridges: Vec<Vec<usize>> = (0..6)
        .map(|ridge| {
            let waves: Vec<_> =
                (1..7).map(|n| (dice.between(1.0, 4.0) * n as f32, dice.between(0.0, TAU))).collect();
            let top = HEIGHT as f32 * (0.3 + 0.11 * ridge as f32);
            let height = |x: usize| {
                let at = x as f32 / WIDTH as f32 * TAU;
                waves.iter().map(|(pace, phase)| (at * pace + phase).sin() * 90.0 / pace).sum::<f32>()
            };
            (0..WIDTH).map(|x| (top + height(x)).max(0.0) as usize).collect()
        })
        .collect();
    Box::new(move |x, y| match ridges.iter().rposition(|ridge| y >= ridge[x]) {
        None => (y / 10) as u8,
        Some(ridge) => (250 - ridge * 30).saturating_sub((y - ridges[ridge][x]) / 16) as u8,
    })
}

/// Circles around three centres, in each other's way.
fn rings(dice: &mut Dice) -> Tints {
    let centres: [_; 3] = std::array::from_fn(|_| {
        (dice.between(0.0, WIDTH as f32), dice.between(0.0, HEIGHT as f32), dice.between(0.1, 0.5))
    });
    Box::new(move |x, y| {
        let sum: f32 = centres
            .iter()
            .map(|(cx, cy, pace)| {
                let (dx, dy) = (x as f32 - cx, y as f32 - cy);
                (dx * dx + dy * dy).sqrt() * pace
            })
            .sum();
        sum as u32 as u8
    })
}

/// Three swells that cross.
fn waves(dice: &mut Dice) -> Tints {
    let sine: Vec<u16> = (0..1024).map(|i| (((i as f32 / 1024.0 * TAU).sin() + 1.0) * 60.0) as u16).collect();
    let paces: [_; 4] = std::array::from_fn(|_| dice.between(1.0, 4.0) as usize);
    Box::new(move |x, y| {
        let at = |pace: usize| sine[pace % 1024];
        (at(x * paces[0]) + at(y * paces[1]) + at((x * paces[2] + y * paces[3]) / 2)) as u8
    })
}

/// Threads over and under each other.
fn weave(dice: &mut Dice) -> Tints {
    let (warp, weft) = (dice.between(2.0, 9.0) as usize, dice.between(2.0, 9.0) as usize);
    Box::new(move |x, y| ((x / warp) ^ (y / weft)) as u8)
}

/// 256 colours that run into each other.
fn palette(dice: &mut Dice, light: [f32; 3]) -> [[u8; 3]; 256] {
    let phases: [f32; 3] = std::array::from_fn(|_| dice.between(0.0, TAU));
    std::array::from_fn(|tint| {
        std::array::from_fn(|colour| {
            let wave = (tint as f32 / 256.0 * TAU + phases[colour]).cos();
            ((wave * 0.45 + 0.5) * light[colour] * 255.0) as u8
        })
    })
}

/// Numbers that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32;
        low + unit * (high - low)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{picture, scan};

    #[test]
    fn every_sample_has_a_name_of_its_own() {
        let names: HashSet<_> = (0..500).map(name).collect();
        assert_eq!(names.len(), 500);
        assert!(
            names.contains(Path::new("waves/dawn/0.jpg")) && names.contains(Path::new("waves/dawn/0.png"))
        );
    }

    #[test]
    fn samples_are_pictures() {
        let dir = tempfile::tempdir().unwrap();
        render(dir.path(), 8, || Ok(())).unwrap();
        let found = scan::pictures(dir.path(), Path::new("/out")).unwrap();
        assert_eq!(found.len(), 8);
        for sample in found {
            assert_eq!(picture::size(&fs::read(sample.source).unwrap()).unwrap(), (2000, 1500));
        }
    }

    #[test]
    fn no_picture_is_begun_after_the_word_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let asked = AtomicUsize::new(0);
        let once = || match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err("stop".into()),
        };
        assert_eq!(render(dir.path(), 8, once).unwrap_err(), "stop");
        assert_eq!(scan::files_below(dir.path()).unwrap().len(), 1);
    }
}
