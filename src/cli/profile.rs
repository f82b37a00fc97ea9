//! Named profiles of servers, in a file, so that addresses and credentials need not be typed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

/// Address of a server, and credential of the caller.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Target {
    /// Address of the server: `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:/path`
    /// [default: 127.0.0.1:50051].
    #[arg(long, env = "KEYVOUCH_ADDR")]
    pub(super) addr: Option<String>,
    /// File with an admin token, or with a key that has a `keyvouch.*` scope [default: keyvouch.admin-token in the
    /// working directory, if it exists and the server is on this machine].
    #[arg(long, env = "KEYVOUCH_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// PEM file of root certificates for TLS [default: the system's roots].
    #[arg(long, env = "KEYVOUCH_CA_FILE", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    #[arg(long, env = "KEYVOUCH_CERT_FILE", value_name = "FILE")]
    pub(super) cert_file: Option<PathBuf>,
    /// PEM file of the private key of `--cert-file`.
    #[arg(long, env = "KEYVOUCH_CERT_KEY_FILE", value_name = "FILE")]
    pub(super) cert_key_file: Option<PathBuf>,
    /// Name to verify in the server's certificate [default: the host of --addr].
    #[arg(long, env = "KEYVOUCH_SERVER_NAME", value_name = "NAME")]
    pub(super) server_name: Option<String>,
}

impl Target {
    /// Fills unset fields from `otherwise`, the profile `name`.
    ///
    /// # Errors
    /// The profile has a credential, and `self` has another address. A credential is only sent to the address of its
    /// profile.
    pub(super) fn or(self, name: &str, otherwise: Self) -> Result<Self> {
        let has_credential = otherwise.token_file.is_some() || otherwise.cert_file.is_some();
        if let (Some(given), Some(own)) = (&self.addr, &otherwise.addr)
            && given != own
            && has_credential
        {
            bail!(
                "--profile {name}: the profile and its credential are for {own}, but --addr or KEYVOUCH_ADDR is {given}; remove \
                 one of them"
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

/// Reads the profile `name` from `file`, or from the default file if that is `None`. Relative paths in it are relative
/// to the directory of the file.
pub(super) fn read(name: &str, file: Option<&Path>) -> Result<Target> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => default_file().context("--profile: the home directory is unknown; set --profiles FILE")?,
    };
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("--profile {name}: can't read {}", file.display()))?;
    let mut profiles: BTreeMap<String, Target> =
        toml::from_str(&text).with_context(|| format!("can't parse the profiles file {}", file.display()))?;
    let Some(mut profile) = profiles.remove(name) else {
        let known: Vec<_> = profiles.into_keys().collect();
        bail!("--profile {name}: not found in {}; it has: {}", file.display(), known.join(", "));
    };
    let folder = file.parent().unwrap_or(Path::new("."));
    let paths =
        [&mut profile.token_file, &mut profile.ca_file, &mut profile.cert_file, &mut profile.cert_key_file];
    for path in paths.into_iter().flatten() {
        *path = folder.join(&path);
    }
    Ok(profile)
}

/// Returns the default profiles file, according to the
/// [XDG base directory specification](https://specifications.freedesktop.org/basedir-spec/latest/). `None` if neither
/// `XDG_CONFIG_HOME` nor `HOME` is set.
fn default_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let settings = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))?;
    Some(settings.join("keyvouch/profiles.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_override_a_profile_and_its_credential_is_sent_only_to_its_address() {
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
        // The token of the profile is not sent to another address.
        let elsewhere = Target { addr: Some("other:1".into()), ..Target::default() };
        let rejected = elsewhere.clone().or("prod", profile("prod")).unwrap_err().to_string();
        assert!(rejected.contains("https://kv:443") && rejected.contains("other:1"), "{rejected}");
        assert_eq!(elsewhere.or("dev", profile("dev")).unwrap().addr.unwrap(), "other:1");
        assert!(read("test", Some(&file)).unwrap_err().to_string().contains("dev, prod"));
        std::fs::write(&file, "[prod]\naddress = 'x'\n").unwrap();
        assert!(format!("{:#}", read("prod", Some(&file)).unwrap_err()).contains("address"));
    }
}
