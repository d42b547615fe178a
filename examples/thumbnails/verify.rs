//! Checks afterwards, from the files alone, that every picture has the one right thumbnail.

use std::{collections::BTreeSet, path::Path};

use image::GenericImageView;

use crate::picture::{self, Failure};
use crate::scan::{self, Picture};

/// The failures that nobody had to expect, a sentence each: of pictures that are not broken, or should not be because
/// all are `sound`.
pub(crate) fn unexpected(failures: &[(String, Failure)], sound: bool) -> Vec<String> {
    let unexpected = |failure: &Failure| sound || matches!(failure, Failure::Undone(_));
    let unexpected = failures.iter().filter(|(_, failure)| unexpected(failure));
    unexpected.map(|(name, failure)| format!("{name}: {failure}")).collect()
}

/// What is wrong below `out`, a sentence each; nothing if all is well.
///
/// `go_on` is asked before each picture; its error, or that `out` cannot be read, ends this.
pub(crate) fn complaints(
    pictures: &[Picture],
    failures: &[(String, Failure)],
    out: &Path,
    go_on: impl Fn() -> Result<(), String>,
) -> Result<Vec<String>, String> {
    let files = scan::files_below(out)?;
    let failed: BTreeSet<_> = failures.iter().map(|(name, _)| name).collect();
    let mut complaints = Vec::new();
    let mut strays: BTreeSet<_> = files.iter().map(|path| out.join(path)).collect();
    for picture in pictures {
        go_on()?;
        let name = &picture.name;
        let made = strays.remove(&picture.target);
        match (made, failed.contains(name)) {
            (true, false) => {
                complaints.extend(compare(picture).err().map(|wrong| format!("{name}: {wrong}")))
            }
            (false, true) => {}
            (true, true) => complaints.push(format!("{name}: was said to fail, but has a thumbnail")),
            (false, false) => complaints.push(format!("{name}: has neither a thumbnail nor a failure")),
        }
    }
    complaints.extend(strays.iter().map(|stray| format!("{}: no picture's thumbnail", stray.display())));
    let known: BTreeSet<_> = pictures.iter().map(|picture| &picture.name).collect();
    let unknown = failed.difference(&known);
    complaints.extend(unknown.map(|name| format!("{name}: was said to fail, but is no picture")));
    Ok(complaints)
}

fn compare(picture: &Picture) -> Result<(), String> {
    let from = picture::read(&picture.source).and_then(|bytes| picture::size(&bytes))?;
    let to = picture::read(&picture.target)
        .and_then(|bytes| picture::decode(&bytes))
        .map_err(|reason| format!("its thumbnail: {reason}"))?
        .dimensions();
    if fits(from, to) {
        return Ok(());
    }
    let ((width, height), (small_width, small_height)) = (from, to);
    Err(format!("{width} × {height} pixels became {small_width} × {small_height}"))
}

/// Whether `to` is `from` made just small enough. Deliberately not the arithmetic that chose the size:
/// the longer side is exact, the other within a pixel.
fn fits(from: (u32, u32), to: (u32, u32)) -> bool {
    let ordered = |(width, height): (u32, u32)| (f64::from(width.max(height)), f64::from(width.min(height)));
    let ((longer, shorter), (to_longer, to_shorter)) = (ordered(from), ordered(to));
    let turned = (from.0 > from.1 && to.0 < to.1) || (from.0 < from.1 && to.0 > to.1);
    let limit = f64::from(picture::SIDE).min(longer);
    !turned && to_longer == limit && to_shorter >= 1.0 && (to_shorter - shorter * limit / longer).abs() < 1.0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::RgbImage;

    use super::*;

    fn broken(name: &str) -> (String, Failure) {
        (name.to_string(), Failure::Broken("broken".into()))
    }

    #[test]
    fn a_fit_is_exact_along_the_longer_side() {
        assert!(fits((2000, 1500), (256, 192)) && fits((1500, 2000), (192, 256)));
        assert!(fits((100, 50), (100, 50)) && fits((5000, 1), (256, 1)));
        assert!(!fits((2000, 1500), (192, 256)), "turned");
        assert!(!fits((2000, 1500), (256, 194)), "out of shape");
        assert!(!fits((2000, 1500), (255, 191)), "too small");
        assert!(!fits((100, 50), (256, 128)), "enlarged");
    }

    #[test]
    fn every_kind_of_mistake_is_found() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["fine", "missing", "failed", "both", "stretched", "garbled"] {
            RgbImage::new(512, 256).save(dir.path().join(name).with_extension("png")).unwrap();
        }
        let (dir, out) = (dir.path(), out.path());
        for (name, height) in [("fine", 128), ("both", 128), ("stretched", 256)] {
            RgbImage::new(256, height).save(out.join(name).with_extension("png")).unwrap();
        }
        for name in ["garbled.png", "stray.txt"] {
            fs::write(out.join(name), b"?").unwrap();
        }
        let pictures = scan::pictures(dir, out).unwrap();
        let failures = ["failed.png", "both.png", "no.png"].map(broken);

        let found = complaints(&pictures, &failures, out, || Ok(())).unwrap();
        assert_eq!(
            found,
            [
                "both.png: was said to fail, but has a thumbnail".to_string(),
                "garbled.png: its thumbnail: neither a jpeg nor a png".into(),
                "missing.png: has neither a thumbnail nor a failure".into(),
                "stretched.png: 512 × 256 pixels became 256 × 256".into(),
                format!("{}: no picture's thumbnail", out.join("stray.txt").display()),
                "no.png: was said to fail, but is no picture".into(),
            ]
        );
    }

    #[test]
    fn only_broken_pictures_may_fail_and_no_sound_ones() {
        let undone = ("lost.png".to_string(), Failure::Undone("tried 20 times".into()));
        let failures = [broken("bad.png"), undone];
        assert_eq!(unexpected(&failures, false), ["lost.png: tried 20 times"]);
        assert_eq!(unexpected(&failures, true), ["bad.png: broken", "lost.png: tried 20 times"]);
    }
}
