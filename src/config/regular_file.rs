//! Opens files that the settings name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens the regular file `path` for reading. Never waits, unlike opening a FIFO, which waits for a writer.
///
/// # Errors
/// The file can't be opened, or it is a folder, a FIFO, a device or a socket.
pub(crate) fn open_regular_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, fifo) =
            (folder.path().join("file"), folder.path().join("link"), folder.path().join("fifo"));
        std::fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let mut text = String::new();
        open_regular_file(&link).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        for other in [folder.path(), &fifo, Path::new("/dev/null")] {
            assert_eq!(open_regular_file(other).unwrap_err().to_string(), "not a regular file", "{other:?}");
        }
        assert_eq!(
            open_regular_file(&folder.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
