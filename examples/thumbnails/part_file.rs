//! A file appears under its name when it is whole; until then its name says that it is not.

use std::{
    ffi::OsStr,
    fs, io,
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::scan;

/// Write `bytes` to `target`, replacing what was there, and make the directories above it.
///
/// Whoever looks at `target` sees the old file or the new one, even if this process is killed half-way.
/// Then a file named `.<pid>-<number>.part` stays behind: see [`remove_leftovers`].
pub(crate) fn write_whole(target: &Path, bytes: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let dir = target.parent().unwrap_or(Path::new(""));
    let part = dir.join(format!(".{}-{}.part", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(dir)?;
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, target));
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first error is the one to tell
    }
    written
}

/// Remove what was left unfinished below `dir`. Nobody may be writing there any more.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<(), String> {
    for path in scan::files_below(dir)?.into_iter().filter(|path| is_part(path)) {
        let path = dir.join(path);
        fs::remove_file(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
    }
    Ok(())
}

/// Whether the name is one that [`write_whole`] gives a file until it is whole.
fn is_part(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let numbers = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")?.split_once('-'));
    numbers.is_some_and(|(pid, number)| pid.parse::<u32>().is_ok() && number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        write_whole(&dir.path().join("a/b/c"), b"one").unwrap();
        write_whole(&dir.path().join("a/b/c"), b"two").unwrap();
        assert_eq!(scan::files_below(dir.path()).unwrap(), [Path::new("a/b/c")]);
        assert_eq!(fs::read(dir.path().join("a/b/c")).unwrap(), b"two");
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("taken/inside")).unwrap();
        write_whole(&dir.path().join("taken"), b"one").unwrap_err();
        assert!(scan::files_below(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn leftovers_go_whoever_wrote_them_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in [".17-0.part", "sub/.18-3.part", "17-0.part", ".17.part", "18.jpg"] {
            fs::write(dir.path().join(name), b"half").unwrap();
        }
        remove_leftovers(dir.path()).unwrap();
        let left = scan::files_below(dir.path()).unwrap();
        assert_eq!(left, [".17.part", "17-0.part", "18.jpg"].map(Path::new));
    }
}
