//! Authentication of administrators: configured tokens, or a token that is generated at the first startup.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::config::{Config, StorePlace};
use crate::domain::{Entropy, KeyPrefix, SecretKey};
use crate::grpc::{AcceptedCredentials, AdminToken, Authenticator, CertificateNames};
use crate::service::ValidatorService;
use crate::telemetry::ValidationMetrics;

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

/// The way in which administrators authenticate.
#[derive(Debug)]
pub enum AdminDoor {
    /// One of these configured tokens is required.
    Configured(Vec<AdminToken>),
    /// The token in this file is required. The server generated it, now or at an earlier startup.
    FirstStart {
        /// The token.
        token: AdminToken,
        /// The file of the token.
        file: PathBuf,
        /// Whether the token was generated at this startup.
        is_new: bool,
    },
    /// No credential is required.
    Open,
}

impl AdminDoor {
    /// Determines the authentication from `config`, which was checked. Without a credential, administration
    /// is reachable only from this machine.
    ///
    /// # Errors
    /// Returns an error if a token can't be read or generated, or if a token has to be configured because
    /// several replicas share the backend.
    pub(super) fn find(config: &Config, entropy: &Arc<dyn Entropy>) -> Result<Self> {
        if config.admin.insecure {
            tracing::warn!("everyone on this machine can administer keys (admin.insecure = true)");
            return Ok(Self::Open);
        }
        if !config.admin.is_unset() {
            return Ok(Self::Configured(config.admin.load_tokens()?));
        }
        let Some(file) = token_file(&config.store.place()?) else {
            bail!(
                "a database server can have several Keyvouch servers, which need to know the same tokens: set \
                 admin.tokens_file to a file with a line `name:token`"
            );
        };
        let (token, is_new) = match read_token(&file)? {
            Some(token) => (token, false),
            None => make_token(&file, entropy.as_ref())?,
        };
        let token = AdminToken::new(TOKEN_NAME, token.trim());
        let token = token.with_context(|| {
            format!("{} holds no admin token: delete it to get a new one", file.display())
        })?;
        Ok(Self::FirstStart { token, file, is_new })
    }

    /// Returns the accepted credentials, and the sender for new tokens when they are reloaded. The sender is
    /// `None` if no credential is required.
    pub(super) fn accepted(
        &self,
        config: &Config,
    ) -> (AcceptedCredentials, Option<watch::Sender<Arc<[AdminToken]>>>) {
        let tokens = match self {
            Self::Configured(tokens) => tokens.clone(),
            Self::FirstStart { token, .. } => vec![token.clone()],
            Self::Open => return (AcceptedCredentials::NotNeeded, None),
        };
        let (sender, tokens) = watch::channel(tokens.into());
        let certificates = CertificateNames {
            admin: config.admin.client_certificates.clone(),
            validator: config.validator.client_certificates.clone(),
        };
        (AcceptedCredentials::Listed { tokens, certificates }, Some(sender))
    }
}

/// Returns the authenticators of `KeyStore` and `Validator`. If administrators, who are on this machine, need
/// no credential, callers of `Validator` on other machines still do.
pub(super) fn authenticators(
    config: &Config,
    accepted: AcceptedCredentials,
    validator: &ValidatorService,
) -> Result<(Authenticator, Authenticator)> {
    // Authentication with a key does not count as a validation.
    let keys = || validator.clone().with_metrics(ValidationMetrics::default());
    let is_open_to_others = accepted.is_open() && !config.server.is_local()?;
    let of_validator = if is_open_to_others { AcceptedCredentials::default() } else { accepted.clone() };
    Ok((Authenticator::new(accepted, keys()), Authenticator::new(of_validator, keys())))
}

/// Returns the path of the token file: beside the database, or in the working directory for the memory
/// backend. Returns `None` for a backend that several replicas can share.
fn token_file(place: &StorePlace) -> Option<PathBuf> {
    match place {
        StorePlace::Memory => Some(TOKEN_FILE.into()),
        StorePlace::Sqlite(path) => Some(path.with_file_name(TOKEN_FILE)),
        StorePlace::Server | StorePlace::Redis => None,
    }
}

/// Returns the token in `file`, or `None` if the file does not exist.
fn read_token(file: &Path) -> Result<Option<Zeroizing<String>>> {
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("can't read the admin token in {}", file.display()))?,
    };
    let metadata = opened.metadata().with_context(|| format!("can't read {}", file.display()))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        // The user that created the file knows the token.
        bail!("{} belongs to another user: delete it to get a new token", file.display());
    }
    if metadata.mode() & OTHERS != 0 {
        bail!(
            "{} can be read by others: run `chmod 600 {}`, or delete it to get a new token",
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
fn make_token(file: &Path, entropy: &dyn Entropy) -> Result<(Zeroizing<String>, bool)> {
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
            let token = read_token(file)?;
            Ok((token.with_context(|| format!("{} vanished while it was read", file.display()))?, false))
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

    use super::*;
    use crate::config::StoreUrl;
    use crate::domain::SystemEntropy;

    fn config(folder: &Path) -> Config {
        let mut config = Config::default();
        config.store.url = StoreUrl::from(format!("sqlite://{}", folder.join("kv.db").display()));
        config
    }

    fn find(config: &Config) -> Result<AdminDoor> {
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        AdminDoor::find(config, &entropy)
    }

    #[test]
    fn the_first_start_makes_a_token_that_later_starts_find() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let AdminDoor::FirstStart { token: first, file, is_new: true } = find(&config).unwrap() else {
            panic!("no new token");
        };
        assert_eq!(file, folder.path().join(TOKEN_FILE));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&file).unwrap().starts_with("kv_admin_"));
        let AdminDoor::FirstStart { token: second, is_new: false, .. } = find(&config).unwrap() else {
            panic!("another new token");
        };
        assert_eq!(first, second);
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "the draft is gone");
    }

    #[test]
    fn many_first_starts_at_once_agree_on_one_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(TOKEN_FILE);
        let starts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| make_token(&file, &SystemEntropy).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(starts.iter().filter(|(_, is_new)| *is_new).count(), 1);
        assert!(starts.iter().all(|(token, _)| token.trim() == starts[0].0.trim()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the drafts are gone");
    }

    #[test]
    fn a_token_that_others_can_read_or_that_is_none_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let file = folder.path().join(TOKEN_FILE);
        fs::write(&file, "a-token-of-enough-characters\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(find(&config).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "").unwrap();
        assert!(find(&config).unwrap_err().to_string().contains("delete it"));
    }
}
