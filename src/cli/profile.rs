//! Servers with a name, in a file, so that their address and credentials need not be typed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

/// Where a server is, and as whom to talk to it.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Target {
    /// The server: `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:/path` [default: 127.0.0.1:50051].
    #[arg(long, env = "KEYVOUCH_ADDR")]
    pub(super) addr: Option<String>,
    /// The file that holds the admin token, or a key with a `keyvouch.*` scope. Without it, `keyvouch.admin-token` in this
    /// folder is used if it is there, for a server on this machine alone.
    #[arg(long, env = "KEYVOUCH_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Roots that a server with TLS is verified against, as PEM. Without it, the system's.
    #[arg(long, env = "KEYVOUCH_CA_FILE", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// The certificate of this client, as PEM.
    #[arg(long, env = "KEYVOUCH_CERT_FILE", value_name = "FILE")]
    pub(super) cert_file: Option<PathBuf>,
    /// The private key of that certificate, as PEM.
    #[arg(long, env = "KEYVOUCH_CERT_KEY_FILE", value_name = "FILE")]
    pub(super) cert_key_file: Option<PathBuf>,
    /// The name that the server's certificate has to have, if it is not the host of --addr.
    #[arg(long, env = "KEYVOUCH_SERVER_NAME", value_name = "NAME")]
    pub(super) server_name: Option<String>,
}

impl Target {
    /// What is given here, and for the rest what the profile `name` gives.
    ///
    /// # Errors
    /// The profile has a credential, which is for its own address and no other.
    pub(super) fn or(self, name: &str, otherwise: Self) -> Result<Self> {
        let has_credential = otherwise.token_file.is_some() || otherwise.cert_file.is_some();
        if let (Some(given), Some(own)) = (&self.addr, &otherwise.addr)
            && given != own
            && has_credential
        {
            bail!(
                "the profile {name} and its credential are for {own}, but --addr or KEYVOUCH_ADDR says {given}: leave out one \
                 of them"
            );
        }
        Ok(Self {
            addr: self.addr.or(otherwise.addr),
            token_file: self.token_file.or(otherwise.token_file),
            ca_file: self.ca_file.or(otherwise.ca_file),
            cert_file: self.cert_file.or(otherwise.cert_file),
            cert_key_file: self.cert_key_file.or(otherwise.cert_key_file),
            server_name: self.server_name.or(otherwise.server_name),
        })
    }
}

/// The profile `name` of `file`, by default of `profiles.toml` in the user's folder of settings. Paths in it are meant from
/// where it is.
pub(super) fn read(name: &str, file: Option<&Path>) -> Result<Target> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => default_file().context("--profile: there is no home folder: give --profiles FILE")?,
    };
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("--profile {name}: {} can't be read", file.display()))?;
    let mut profiles: BTreeMap<String, Target> =
        toml::from_str(&text).with_context(|| format!("{} is no file of profiles", file.display()))?;
    let Some(mut profile) = profiles.remove(name) else {
        let known: Vec<_> = profiles.into_keys().collect();
        bail!("--profile {name}: {} has only: {}", file.display(), known.join(", "));
    };
    let folder = file.parent().unwrap_or(Path::new("."));
    let paths =
        [&mut profile.token_file, &mut profile.ca_file, &mut profile.cert_file, &mut profile.cert_key_file];
    for path in paths.into_iter().flatten() {
        *path = folder.join(&path);
    }
    Ok(profile)
}

/// By the [XDG base directory specification](https://specifications.freedesktop.org/basedir-spec/latest/).
fn default_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let settings = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))?;
    Some(settings.join("keyvouch/profiles.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_stands_behind_what_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("profiles.toml");
        std::fs::write(
            &file,
            "[prod]\naddr = 'https://kv:443'\ntoken_file = 'token'\n[dev]\naddr = 'unix:/s'\n",
        )
        .unwrap();
        let profile = |name: &str| read(name, Some(&file)).unwrap();
        let given = Target { token_file: Some("mine".into()), ..Target::default() };
        let target = given.or("prod", profile("prod")).unwrap();
        assert_eq!(target.addr.unwrap(), "https://kv:443");
        assert_eq!(target.token_file.unwrap(), Path::new("mine"));
        let target = Target::default().or("prod", profile("prod")).unwrap();
        assert_eq!(target.token_file.unwrap(), folder.path().join("token"));
        // Its token goes nowhere else.
        let elsewhere = Target { addr: Some("other:1".into()), ..Target::default() };
        let refused = elsewhere.clone().or("prod", profile("prod")).unwrap_err().to_string();
        assert!(refused.contains("https://kv:443") && refused.contains("other:1"), "{refused}");
        assert_eq!(elsewhere.or("dev", profile("dev")).unwrap().addr.unwrap(), "other:1");
        assert!(read("test", Some(&file)).unwrap_err().to_string().contains("dev, prod"));
        std::fs::write(&file, "[prod]\naddress = 'x'\n").unwrap();
        assert!(format!("{:#}", read("prod", Some(&file)).unwrap_err()).contains("address"));
    }
}
