//! Finds the pictures below a directory and says where their thumbnails go.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

/// One picture to be made smaller.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// Its path below the directory, as text: unique, and what messages call it.
    pub(crate) name: String,
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
}

/// The pictures below `dir` in the order of their paths.
///
/// A thumbnail has the path below `out` that its picture has below `dir`, ending included, so no two can collide.
pub(crate) fn pictures(dir: &Path, out: &Path) -> Result<Vec<Picture>, String> {
    let mut pictures = Vec::new();
    for path in files_below(dir)? {
        // A link that leads nowhere is listed: its failure is to be told. A directory, pipe or device is not.
        let leads_elsewhere = fs::metadata(dir.join(&path)).is_ok_and(|found| !found.is_file());
        if !has_a_pictures_ending(&path) || leads_elsewhere {
            continue;
        }
        // Names that are not UTF-8 are shown escaped, in quotes.
        let name = path.to_str().map_or_else(|| format!("{path:?}"), String::from);
        pictures.push(Picture { name, source: dir.join(&path), target: out.join(&path) });
    }
    if pictures.is_empty() {
        return Err(format!("no .jpg, .jpeg or .png below {}", dir.display()));
    }
    Ok(pictures)
}

fn has_a_pictures_ending(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// Everything below `dir` that is not a directory, sorted, as paths relative to `dir`.
///
/// Links to directories are listed but not entered, so a link that leads upwards cannot make this endless.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let place = dir.join(&directory);
        let shown = place.components().as_path().display(); // without a slash at its end
        let unreadable = |e: io::Error| format!("cannot read the directory {shown}: {e}");
        for entry in fs::read_dir(&place).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = directory.join(entry.file_name());
            if entry.file_type().map_err(unreadable)?.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Make the directory `out`, or take it if it is there and empty: what it holds must be nobody else's.
pub(crate) fn claim_output(out: &Path) -> Result<(), String> {
    let unusable = |e| format!("cannot write to {}: {e}", out.display());
    fs::create_dir_all(out).map_err(unusable)?;
    match fs::read_dir(out).map_err(unusable)?.next() {
        None => Ok(()),
        Some(_) => Err(format!("{} is not empty: name a new directory", out.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};

    use super::*;

    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        pictures(dir, Path::new("/out")).unwrap().into_iter().map(|picture| picture.name).collect()
    }

    #[test]
    fn pictures_come_in_the_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["b/2.png", "b/10.JPG", "a.jpeg", "notes.txt", "jpg", ".png", "b/c/d.jpg"]);
        assert_eq!(names(dir.path()), ["a.jpeg", "b/10.JPG", "b/2.png", "b/c/d.jpg"]);
    }

    #[test]
    fn pictures_that_share_a_stem_have_targets_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["x/a.jpg", "x/a.png"]);
        let found = pictures(dir.path(), Path::new("/out")).unwrap();
        assert_eq!(found[0].target, Path::new("/out/x/a.jpg"));
        assert_eq!(found[1].target, Path::new("/out/x/a.png"));
        assert_eq!(found[0].source, dir.path().join("x/a.jpg"));
    }

    #[test]
    fn links_that_lead_upwards_end() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["x/a.jpg"]);
        symlink(dir.path(), dir.path().join("x/up")).unwrap();
        symlink(dir.path(), dir.path().join("x/up.jpg")).unwrap();
        symlink("self.png", dir.path().join("self.png")).unwrap();
        symlink("a.jpg", dir.path().join("x/b.jpg")).unwrap();
        assert_eq!(names(dir.path()), ["self.png", "x/a.jpg", "x/b.jpg"]);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_shown_escaped() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"caf\xE9.jpg")), b"").unwrap();
        assert_eq!(names(dir.path()), [r#""caf\xE9.jpg""#]);
    }

    #[test]
    fn nothing_to_do_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = pictures(&dir.path().join("missing"), Path::new("/out")).unwrap_err();
        assert!(
            missing.starts_with("cannot read the directory ") && missing.contains("missing"),
            "{missing}"
        );
        let empty = pictures(dir.path(), Path::new("/out")).unwrap_err();
        assert!(empty.starts_with("no .jpg, .jpeg or .png below "), "{empty}");
    }

    #[test]
    fn only_an_empty_directory_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        claim_output(&dir.path().join("new/deep")).unwrap();
        claim_output(&dir.path().join("new/deep")).unwrap();
        assert!(claim_output(&dir.path().join("new")).unwrap_err().contains("is not empty"));
    }
}
