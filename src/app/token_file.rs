//! The file of the token that the first startup generates for administrators.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::config::{SqlPlace, StoreBackend, open_regular_file};
use crate::domain::{Entropy, KeyPrefix, SecretKey};
use crate::grpc::AdminToken;

/// Name of the token file. The first startup writes it beside the database, and the command line finds it
/// there.
pub const TOKEN_FILE: &str = "keyvouch.admin-token";

/// Prefix of a generated token.
const TOKEN_PREFIX: &str = "kv_admin_";
/// Name of the generated token in the audit trail.
const TOKEN_NAME: &str = "first-start";
/// Permission bits of a file for users other than its owner.
const OTHERS: u32 = 0o077;
/// Maximum size of a token file in bytes. No token is that long, so a larger file is not a token file.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Returns the path of the token file: beside the database, or in the working directory for the memory
/// backend. Returns `None` for a backend that several replicas can share.
pub(super) fn path(backend: &StoreBackend) -> Option<PathBuf> {
    match backend {
        StoreBackend::Memory => Some(TOKEN_FILE.into()),
        StoreBackend::Sql { place: SqlPlace::File(path), .. } => Some(path.with_file_name(TOKEN_FILE)),
        StoreBackend::Sql { place: SqlPlace::Server { .. }, .. } | StoreBackend::Redis { .. } => None,
    }
}

/// Returns the token in `file`, or `None` if the file does not exist.
///
/// # Errors
/// Returns an error if the file can't be read, if users other than the owner may read it, or if it does not
/// contain a token.
pub(super) fn read(file: &Path) -> Result<Option<AdminToken>> {
    read_text(file)?.map(|token| parse(&token, file)).transpose()
}

/// Returns the token in `file`, which is generated if the file does not exist. The flag is whether the token
/// is new.
///
/// # Errors
/// Returns the errors of [`read`], and an error if the file can't be written.
pub(super) fn read_or_generate(file: &Path, entropy: &dyn Entropy) -> Result<(AdminToken, bool)> {
    let (token, is_new) = generate(file, entropy)?;
    Ok((parse(&token, file)?, is_new))
}

fn parse(token: &str, file: &Path) -> Result<AdminToken> {
    AdminToken::new(TOKEN_NAME, token.trim()).with_context(|| {
        format!("{}: not a valid admin token; delete the file to generate a new one", file.display())
    })
}

fn read_text(file: &Path) -> Result<Option<Zeroizing<String>>> {
    let opened = match open_regular_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("can't read the admin token in {}", file.display()))?,
    };
    let metadata = opened.metadata().with_context(|| format!("can't read {}", file.display()))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        // The user that created the file knows the token.
        bail!("{}: the file belongs to another user; delete it to generate a new token", file.display());
    }
    if metadata.mode() & OTHERS != 0 {
        bail!(
            "{}: other users can read the file; run `chmod 600 {}`, or delete it to generate a new token",
            file.display(),
            file.display()
        );
    }
    let mut token = Zeroizing::new(String::new());
    let read = opened.take(MAX_TOKEN_BYTES).read_to_string(&mut token);
    read.with_context(|| format!("can't read the admin token in {}", file.display()))?;
    Ok(Some(token))
}

/// Generates a token and writes its file atomically. If another server was faster, returns that server's
/// token. The flag is whether the token is new.
fn generate(file: &Path, entropy: &dyn Entropy) -> Result<(Zeroizing<String>, bool)> {
    let prefix = KeyPrefix::parse("admin token", TOKEN_PREFIX)?;
    let token = SecretKey::generate(&prefix, entropy)?;
    let cannot_write = || format!("can't write the admin token to {}", file.display());
    // The name is unique, so that a draft that a killed server left behind does not block the next one.
    let mut suffix = [0; 8];
    entropy.fill(&mut suffix)?;
    let draft = file.with_file_name(format!(".{TOKEN_FILE}.{}", HEXLOWER.encode(&suffix)));
    write_synced(&draft, token.expose()).with_context(cannot_write)?;
    // A hard link, unlike a rename, fails if the name exists.
    let linked = fs::hard_link(&draft, file);
    fs::remove_file(&draft).with_context(cannot_write)?;
    match linked {
        Ok(()) => {
            sync_folder(file).with_context(cannot_write)?;
            Ok((Zeroizing::new(token.expose().to_owned()), true))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let token = read_text(file)?;
            Ok((token.with_context(|| format!("{} was deleted while it was read", file.display()))?, false))
        }
        Err(error) => Err(error).with_context(cannot_write),
    }
}

fn write_synced(path: &Path, token: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{token}")?;
    file.sync_all()
}

fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::domain::SystemEntropy;

    #[test]
    fn a_generated_token_is_found_later() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(TOKEN_FILE);
        assert_eq!(read(&file).unwrap(), None);
        let (token, is_new) = read_or_generate(&file, &SystemEntropy).unwrap();
        assert!(is_new);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&file).unwrap().starts_with("kv_admin_"));
        assert_eq!(read(&file).unwrap(), Some(token.clone()));
        assert_eq!(read_or_generate(&file, &SystemEntropy).unwrap(), (token, false));
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "the draft is deleted");
    }

    #[test]
    fn concurrent_first_starts_agree_on_one_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(TOKEN_FILE);
        let starts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| read_or_generate(&file, &SystemEntropy).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(starts.iter().filter(|(_, is_new)| *is_new).count(), 1);
        assert!(starts.iter().all(|(token, _)| *token == starts[0].0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the drafts are deleted");
    }

    #[test]
    fn a_file_that_is_not_regular_is_rejected_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(TOKEN_FILE);
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("keyvouch.admin-token: not a regular file"), "{error}");
    }

    #[test]
    fn a_file_that_others_can_read_or_without_a_token_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(TOKEN_FILE);
        fs::write(&file, "a-token-of-enough-characters\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("delete the file"));
    }
}
