//! Reads the command line.

use std::{ffi::OsString, path::PathBuf, thread};

pub(crate) const USAGE: &str = "\
Make thumbnails of the pictures in a directory tree, in worker processes.

Usage: thumbnails [OPTIONS] [DIR]

  DIR            where the pictures are (.jpg, .jpeg, .png);
                 without it, 48 samples are rendered into a temporary directory
  --out DIR      where the thumbnails go, a new or empty directory;
                 without it, DIR-thumbnails beside DIR; those of samples
                 are only made, measured and deleted again
  --workers N    how many worker processes make them, 1 to 256;
                 without it, one per core
  --chaos        kill a random one of them every 200 ms, then check every
                 thumbnail
  --compare      run again with one worker, and compare
  --help         print this
";

const MOST_WORKERS: usize = 256;

/// What the user asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) dir: Option<PathBuf>,
    pub(crate) out: Option<PathBuf>,
    pub(crate) workers: usize,
    pub(crate) chaos: bool,
    pub(crate) compare: bool,
    pub(crate) help: bool,
}

/// Parse what follows the program's name. The error says what is wrong and how it is right.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, String> {
    parse_words(args.into_iter()).map_err(|wrong| format!("{wrong}\n\n{USAGE}"))
}

fn parse_words(mut words: impl Iterator<Item = OsString>) -> Result<Args, String> {
    let mut args = Args { dir: None, out: None, workers: cores(), chaos: false, compare: false, help: false };
    let mut only_paths = false;
    while let Some(word) = words.next() {
        // `--out=DIR` is `--out DIR`. A path that is not UTF-8 is no option of ours.
        let text = word.to_str().filter(|text| !only_paths && text.starts_with('-')).unwrap_or_default();
        let (option, inline) = match text.split_once('=') {
            Some((option, value)) => (option, Some(OsString::from(value))),
            None => (text, None),
        };
        let takes_value = matches!(option, "--out" | "--workers");
        if inline.is_some() && !takes_value {
            return Err(format!("{option} takes no value"));
        }
        let mut value = || {
            inline
                .clone()
                .or_else(|| words.next())
                .filter(|v| !v.is_empty())
                .ok_or(format!("{option} needs a value"))
        };
        match option {
            "" if word.is_empty() => return Err("a directory needs a name".into()),
            "" if args.dir.is_none() => args.dir = Some(word.into()),
            "" => return Err(format!("one directory is enough, but there is also {word:?}")),
            "--" => only_paths = true,
            "--out" => args.out = Some(value()?.into()),
            "--workers" => args.workers = worker_count(&value()?)?,
            "--chaos" => args.chaos = true,
            "--compare" => args.compare = true,
            "--help" | "-h" => args.help = true,
            unknown => return Err(format!("there is no option {unknown}")),
        }
    }
    Ok(args)
}

fn worker_count(value: &OsString) -> Result<usize, String> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=MOST_WORKERS).contains(number))
        .ok_or(format!("--workers needs a number from 1 to {MOST_WORKERS}, not {value:?}"))
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get()).min(MOST_WORKERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn wrong(line: &str) -> String {
        let error = parsed(line).unwrap_err();
        let (first, rest) = error.split_once("\n\n").unwrap();
        assert_eq!(rest, USAGE);
        first.to_string()
    }

    #[test]
    fn nothing_is_needed() {
        let nothing =
            Args { dir: None, out: None, workers: cores(), chaos: false, compare: false, help: false };
        assert_eq!(parsed("").unwrap(), nothing);
    }

    #[test]
    fn everything_in_any_order() {
        let everything = Args {
            dir: Some("pictures".into()),
            out: Some("small".into()),
            workers: 3,
            chaos: true,
            compare: true,
            help: true,
        };
        for line in [
            "pictures --out small --workers 3 --chaos --compare --help",
            "-h --compare --workers=3 --chaos --out=small pictures",
        ] {
            assert_eq!(parsed(line).unwrap(), everything);
        }
    }

    #[test]
    fn after_two_dashes_all_is_a_path() {
        assert_eq!(parsed("--chaos -- --out").unwrap().dir, Some("--out".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(wrong("a b"), r#"one directory is enough, but there is also "b""#);
        assert_eq!(parse([OsString::new()]).unwrap_err(), format!("a directory needs a name\n\n{USAGE}"));
        assert_eq!(wrong("--fast"), "there is no option --fast");
        assert_eq!(wrong("-x"), "there is no option -x");
        assert_eq!(wrong("--out"), "--out needs a value");
        assert_eq!(wrong("--out="), "--out needs a value");
        assert_eq!(wrong("--chaos=yes"), "--chaos takes no value");
        for count in ["0", "-1", "257", "many"] {
            let expected = format!("--workers needs a number from 1 to 256, not {count:?}");
            assert_eq!(wrong(&format!("--workers {count}")), expected);
        }
    }
}
