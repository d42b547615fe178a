//! Makes one thumbnail: decode under limits, fit into a square, write.

use std::{fmt, fs, io::Cursor, path::Path};

use image::{
    DynamicImage, GenericImageView, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits,
    codecs::jpeg::JpegEncoder, error::LimitErrorKind, imageops::FilterType, metadata::Orientation,
};
use serde::{Deserialize, Serialize};

use crate::part_file;

/// A thumbnail is at most this wide and at most this high, in pixels.
pub(crate) const SIDE: u32 = 256;

/// A picture that would take more than this when decoded is refused: 512 MiB, or 178 million pixels of RGB.
const MEMORY: u64 = 512 << 20;

/// Larger files are refused unread. No picture that decodes within [`MEMORY`] is larger in practice.
const FILE: u64 = 256 << 20;

/// What became of one picture. Sizes are width and height in pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thumbnail {
    pub(crate) from: (u32, u32),
    pub(crate) to: (u32, u32),
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Why there is no thumbnail, as a fragment that fits after the picture's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// The picture itself is at fault.
    Broken(String),
    /// The picture may be sound: its worker, the way there or the disk failed.
    Undone(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Broken(reason) | Failure::Undone(reason)) = self;
        f.write_str(reason)
    }
}

/// Read the picture at `source` and write its thumbnail to `target`, in the format `target` is named for.
///
/// `target` and the directories above it appear when all else is done, `target` as a whole or not at all.
pub(crate) fn make_thumbnail(source: &Path, target: &Path) -> Result<Thumbnail, Failure> {
    let picture = read(source).map_err(Failure::Broken)?;
    let image = decode(&picture).map_err(Failure::Broken)?;
    let small = shrink(&image);
    let encoded = encode(&small, target).map_err(Failure::Undone)?;
    part_file::write_whole(target, &encoded)
        .map_err(|e| Failure::Undone(format!("its thumbnail cannot be written: {e}")))?;
    Ok(Thumbnail {
        from: image.dimensions(),
        to: small.dimensions(),
        bytes_in: picture.len() as u64,
        bytes_out: encoded.len() as u64,
    })
}

/// The bytes of a picture file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |e| format!("cannot be read: {e}");
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE {
        return Err(format!("a file of {} MiB, more than the {} MiB allowed", length >> 20, FILE >> 20));
    }
    fs::read(path).map_err(unreadable)
}

/// The picture, upright.
pub(crate) fn decode(picture: &[u8]) -> Result<DynamicImage, String> {
    let (mut decoder, format) = open(picture)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // The decoder paints what is missing grey and calls that a success.
    if format == ImageFormat::Jpeg && !jpeg_has_an_end(picture) {
        return Err("broken jpeg: the data ends too early".into());
    }
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| reason(format, e))?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Width and height of the picture when upright, from its header alone.
pub(crate) fn size(picture: &[u8]) -> Result<(u32, u32), String> {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let (mut decoder, _) = open(picture)?;
    let (width, height) = decoder.dimensions();
    Ok(match decoder.orientation() {
        Ok(Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH) => (height, width),
        _ => (width, height),
    })
}

/// The decoder of a picture that fits into memory. The bytes decide the format, not the file's name.
fn open(picture: &[u8]) -> Result<(impl ImageDecoder + '_, ImageFormat), String> {
    let format = match image::guess_format(picture) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => format,
        _ => return Err("neither a jpeg nor a png".into()),
    };
    let mut limits = Limits::default();
    limits.max_alloc = Some(MEMORY);
    let mut reader = ImageReader::with_format(Cursor::new(picture), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| reason(format, e))?;

    let ((width, height), needed) = (decoder.dimensions(), decoder.total_bytes());
    if needed > MEMORY {
        return Err(format!(
            "{width} × {height} pixels would take {} MiB, more than the {} MiB allowed",
            needed >> 20,
            MEMORY >> 20
        ));
    }
    Ok((decoder, format))
}

/// Whether an end-of-image marker follows the start of the first scan.
/// One in the segments before that belongs to an embedded preview; a scan's data cannot hold the marker's two bytes.
fn jpeg_has_an_end(jpeg: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    let mut rest = jpeg.get(2..).unwrap_or_default();
    loop {
        match *rest {
            [0xFF, 0xFF, ..] => rest = &rest[1..], // padding
            [0xFF, START_OF_SCAN, ..] => return rest.windows(2).any(|pair| pair == [0xFF, 0xD9]),
            [0xFF, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(2 + length..).unwrap_or_default();
            }
            _ => return false,
        }
    }
}

fn shrink(image: &DynamicImage) -> DynamicImage {
    let (width, height) = fit(image.dimensions());
    // Eight bits a channel, colour or colour with transparency: what both formats can hold.
    let image: DynamicImage =
        if image.color().has_alpha() { image.to_rgba8().into() } else { image.to_rgb8().into() };
    image.resize_exact(width, height, FilterType::Lanczos3)
}

/// The largest size of the same shape within [`SIDE`] × [`SIDE`]; a picture that fits already stays as it is.
fn fit((width, height): (u32, u32)) -> (u32, u32) {
    let longer = width.max(height);
    if longer <= SIDE {
        return (width, height);
    }
    let scaled = |side: u32| {
        let rounded = (u64::from(side) * u64::from(SIDE) + u64::from(longer) / 2) / u64::from(longer);
        rounded.clamp(1, u64::from(SIDE)) as u32
    };
    (scaled(width), scaled(height))
}

fn encode(small: &DynamicImage, target: &Path) -> Result<Vec<u8>, String> {
    let mut encoded = Cursor::new(Vec::new());
    match ImageFormat::from_path(target) {
        Ok(ImageFormat::Jpeg) => {
            small.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut encoded, 85))
        }
        _ => small.write_to(&mut encoded, ImageFormat::Png),
    }
    .map_err(|e| format!("its thumbnail cannot be encoded: {e}"))?;
    Ok(encoded.into_inner())
}

/// One short line from the library's error.
fn reason(format: ImageFormat, error: ImageError) -> String {
    let kind = if format == ImageFormat::Jpeg { "jpeg" } else { "png" };
    match error {
        ImageError::IoError(_) => format!("broken {kind}: the data ends too early"),
        ImageError::Limits(limit) if limit.kind() == LimitErrorKind::InsufficientMemory => {
            format!("would take more than the {} MiB allowed", MEMORY >> 20)
        }
        error => {
            let cause =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let line = cause.lines().next().unwrap_or_default().trim_end_matches('.').replace(". ", ": ");
            let mut letters = line.chars();
            let first = letters.next().map(|letter| letter.to_ascii_lowercase());
            format!("broken {kind}: {}{}", first.unwrap_or('?'), letters.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(width, height).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_thumbnail_keeps_the_shape() {
        assert_eq!(fit((2000, 1500)), (256, 192));
        assert_eq!(fit((1500, 2000)), (192, 256));
        assert_eq!(fit((257, 257)), (256, 256));
        assert_eq!(fit((1_000_000, 3)), (256, 1));
        assert_eq!(fit((u32::MAX, u32::MAX)), (256, 256));
    }

    #[test]
    fn a_small_picture_keeps_its_size() {
        assert_eq!(fit((256, 10)), (256, 10));
        assert_eq!(fit((1, 1)), (1, 1));
    }

    #[test]
    fn a_truncated_jpeg_is_refused() {
        let reason = decode(include_bytes!("broken/truncated.jpg")).unwrap_err();
        assert_eq!(reason, "broken jpeg: the data ends too early");
    }

    #[test]
    fn a_decompression_bomb_is_refused_by_its_header() {
        let reason = decode(include_bytes!("broken/bomb.png")).unwrap_err();
        assert_eq!(reason, "20000 × 20000 pixels would take 1525 MiB, more than the 512 MiB allowed");
    }

    #[test]
    fn a_bad_zlib_stream_is_refused() {
        let reason = decode(include_bytes!("broken/bad-zlib.png")).unwrap_err();
        assert!(reason.starts_with("broken png: corrupt deflate stream"), "{reason}");
    }

    #[test]
    fn a_picture_cut_anywhere_is_refused() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png] {
            let whole = encoded(format, 40, 30);
            assert!(decode(&whole).is_ok());
            // The last chunk of a png, IEND, carries nothing.
            let needed = whole.len() - if format == ImageFormat::Png { 12 } else { 0 };
            for cut in 0..needed {
                assert!(decode(&whole[..cut]).is_err(), "{format:?} cut at {cut} of {}", whole.len());
            }
        }
    }

    #[test]
    fn a_jpeg_with_something_appended_is_whole() {
        let mut jpeg = encoded(ImageFormat::Jpeg, 40, 30);
        jpeg.extend_from_slice(b"a short film, as phones append it \xFF\xDA");
        assert!(decode(&jpeg).is_ok());
    }

    #[test]
    fn the_end_of_an_embedded_preview_is_not_the_end_of_the_picture() {
        let jpeg = encoded(ImageFormat::Jpeg, 40, 30);
        let mut with_preview = jpeg[..2].to_vec();
        with_preview.extend_from_slice(b"\xFF\xE1\x00\x06\xFF\xDA\xFF\xD9");
        with_preview.extend_from_slice(&jpeg[2..jpeg.len() - 2]);
        assert!(decode(&with_preview).is_err());
        with_preview.extend_from_slice(b"\xFF\xD9");
        assert!(decode(&with_preview).is_ok());
    }

    #[test]
    fn the_target_is_named_for_its_format_and_the_source_need_not_be() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("really-a-png.jpg");
        fs::write(&source, encoded(ImageFormat::Png, 1000, 500)).unwrap();
        let target = dir.path().join("out/deep/small.JPG");
        let thumbnail = make_thumbnail(&source, &target).unwrap();
        assert_eq!((thumbnail.from, thumbnail.to), ((1000, 500), (256, 128)));
        let written = fs::read(&target).unwrap();
        assert_eq!(written.len() as u64, thumbnail.bytes_out);
        assert_eq!(image::guess_format(&written).unwrap(), ImageFormat::Jpeg);
        assert_eq!(size(&written).unwrap(), (256, 128));
    }

    #[test]
    fn what_is_no_picture_says_so() {
        assert_eq!(decode(b"").unwrap_err(), "neither a jpeg nor a png");
        assert_eq!(decode(b"GIF89a............").unwrap_err(), "neither a jpeg nor a png");
        let failure = make_thumbnail(Path::new("/nowhere/x.jpg"), Path::new("/nowhere/y.jpg")).unwrap_err();
        assert!(matches!(&failure, Failure::Broken(reason) if reason.starts_with("cannot be read: ")));
    }

    #[test]
    fn a_thumbnail_that_cannot_be_written_is_not_the_pictures_fault() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("x.png"), dir.path().join("taken"));
        fs::write(&source, encoded(ImageFormat::Png, 40, 30)).unwrap();
        fs::create_dir_all(target.join("inside")).unwrap();
        let failure = make_thumbnail(&source, &target).unwrap_err();
        assert!(
            matches!(&failure, Failure::Undone(why) if why.starts_with("its thumbnail cannot be written"))
        );
    }
}
