//! SQLite rolls transactions back by itself when a disk is full or fails. No acknowledged change may be part
//! of such a transaction.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use keyvouch::domain::{ChangeContext, KeyHash, KeyName, RevokeReason, Timestamp};
use keyvouch::repository::{
    ChangeFeed as _, ErrorKind, FeedPosition, KeyRepository as _, ListedKey, PageRequest, SqlOptions,
    SqlRepository,
};
use sea_orm::{ConnectionTrait as _, Database};

use crate::process::program::{Home, Server, wait_for};
use crate::sql::key;

fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", Timestamp::from_micros(1_767_225_600_000_000).unwrap())
}

/// A trigger that raises `ROLLBACK` rolls the whole transaction back, as a full disk does.
#[tokio::test]
async fn a_change_after_an_automatic_rollback_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let repository = SqlRepository::open_sqlite(&path, SqlOptions::default()).await.unwrap();
    repository.migrate().await.unwrap();
    let stranger = Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    for trigger in [
        "CREATE TRIGGER cursed BEFORE INSERT ON api_key WHEN NEW.name = 'cursed' \
         BEGIN SELECT RAISE(ROLLBACK, 'cursed'); END",
        "CREATE TRIGGER cursed_event BEFORE INSERT ON key_event WHEN NEW.actor = 'cursed' \
         BEGIN SELECT RAISE(ROLLBACK, 'cursed'); END",
    ] {
        stranger.execute_unprepared(trigger).await.unwrap();
    }
    for round in 0..3 {
        for number in 0..2 {
            let mut cursed = key(&format!("cursed {round} {number}"));
            cursed.name = KeyName::parse("name", "cursed").unwrap();
            repository.create(cursed, &context()).await.unwrap_err();
            let late = key(&format!("late {round} {number}"));
            let by_cursed = ChangeContext { actor: "cursed".into(), ..context() };
            repository.create(late, &by_cursed).await.unwrap_err();
        }
        let created = repository.create(key(&format!("sound {round}")), &context()).await.unwrap();
        let revoked = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
        // Another reader of the file finds it, and so does a reader of this process.
        let other = SqlRepository::open_sqlite(&path, SqlOptions::default()).await.unwrap();
        assert_eq!(other.get_by_hash(&created.hash).await.unwrap(), Some(revoked.clone()));
        assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(revoked));
    }
}

/// SQLite continues to use the deleted file. Its content is not returned, and no cache is used.
#[tokio::test]
async fn a_replaced_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let repository = SqlRepository::open_sqlite(&path, SqlOptions::default()).await.unwrap();
    repository.migrate().await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    let position = repository.changes(Some(&FeedPosition::beginning()), 10).await.unwrap().position;
    std::fs::copy(&path, folder.path().join("backup.db")).unwrap();
    std::fs::rename(folder.path().join("backup.db"), &path).unwrap();
    for error in [
        repository.get_by_hash(&created.hash).await.unwrap_err(),
        repository.get_many_by_hash(&[created.hash]).await.unwrap_err(),
        repository.get(created.id).await.unwrap_err(),
        repository.recent_changes(10).await.unwrap_err(),
        repository.create(key("b"), &context()).await.unwrap_err(),
        repository.ping().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    let error = repository.changes(Some(&position), 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PositionLost, "caches have to drop their entries");
}

/// SQLite accepts values of any type in a column.
#[tokio::test]
async fn a_column_of_another_type_affects_no_other_row() {
    for (column, value) in [
        ("revoked_at", "'abc'"),
        ("owner_id", "x'ff00'"),
        ("hash", "'abc'"),
        ("created_at", "'abc'"),
        ("nonce", "'abc'"),
        ("scopes", "7"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kv.db");
        let repository = SqlRepository::open_sqlite(&file, SqlOptions::default()).await.unwrap();
        repository.migrate().await.unwrap();
        let sound = repository.create(key("a"), &context()).await.unwrap();
        let broken = repository.create(key("b"), &context()).await.unwrap();
        let database = Database::connect(format!("sqlite://{}", file.display())).await.unwrap();
        let sql = format!("UPDATE api_key SET {column} = {value} WHERE revision = 2");
        database.execute_unprepared(&sql).await.unwrap();
        let mut request = PageRequest { owner_id: None, after: None, limit: 1 };
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        loop {
            let page = repository.list_page(&request).await.unwrap();
            let Some(listed) = page.into_iter().next() else { break };
            request.after = Some(listed.position());
            match listed {
                ListedKey::Read(key) => read.push(key),
                ListedKey::Unreadable(position) => unreadable.push(position.id),
            }
        }
        assert!(read.contains(&sound), "{column}");
        assert_eq!(read.len() + unreadable.len(), 2, "{column}");
        repository.revoke(broken.id, RevokeReason::default(), &context()).await.unwrap();
        repository.delete(broken.id, &context()).await.unwrap();
        assert_eq!(repository.get(broken.id).await.unwrap(), None, "{column}");
    }
}

/// The process returns no cached keys either, and its health check fails.
#[test]
fn a_server_whose_file_was_replaced_is_not_ready() {
    let home = Home::new();
    let server = home.serve(&["admin.insecure=true", "telemetry.listen=127.0.0.1:0"]);
    let created = home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    let secret = created["secret"].as_str().unwrap();
    assert_eq!(home.validate(&server, secret).1, "REASON_VALID");
    let file = home.path().join("keyvouch.db");
    std::fs::copy(&file, home.path().join("backup.db")).unwrap();
    std::fs::rename(home.path().join("backup.db"), &file).unwrap();
    for service in ["keyvouch.v1.KeyStore", "keyvouch.v1.Validator"] {
        let healthcheck = ["healthcheck", "--addr", &server.address, "--service", service];
        wait_for("health", || (home.run(&healthcheck).status != 0).then_some(()));
    }
    let arguments = ["validate", "--addr", &server.address];
    let done = home.run_with_input(&arguments, secret);
    assert!(done.stderr.contains("unavailable"), "{} {}", done.stdout, done.stderr);
    assert!(home.read("stderr").contains("restart"), "{}", home.read("stderr"));
}

/// A file system for a single server, which can be filled.
struct SmallDisk {
    home: Home,
    /// Process that holds the namespace in which the file system is mounted.
    holder: Child,
    /// Path of the file system from this namespace.
    path: PathBuf,
}

impl SmallDisk {
    fn mount(kilobytes: u32) -> Self {
        let home = Home::new();
        std::fs::create_dir(home.path().join("disk")).unwrap();
        let script =
            format!("mount -t tmpfs -o size={kilobytes}k tmpfs disk && touch disk/mounted && exec cat");
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let holder = command
            .args(["--mount", "sh", "-c", &script])
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let path = Path::new("/proc").join(holder.id().to_string()).join("cwd/disk");
        wait_for("the file system", || path.join("mounted").exists().then_some(()));
        Self { home, holder, path }
    }

    /// Returns the command prefix that starts a program which sees the file system, in the folder above it.
    fn starter(&self) -> Vec<String> {
        let mut starter = vec!["nsenter".to_owned(), "--target".to_owned(), self.holder.id().to_string()];
        if !rustix::process::geteuid().is_root() {
            starter.extend(["--user".to_owned(), "--preserve-credentials".to_owned()]);
        }
        starter.extend(["--mount".to_owned(), "--root".to_owned(), "--wd".to_owned()]);
        starter
    }

    fn serve(&self) -> Server {
        let starter = self.starter();
        let starter: Vec<_> = starter.iter().map(String::as_str).collect();
        self.home
            .serve_by(&starter, &["store.url=sqlite://disk/kv.db", "admin.insecure=true", "store.timeout=2s"])
    }

    fn fill(&self) {
        let mut filler = File::create(self.path.join("fill")).unwrap();
        while filler.write_all(&[0; 512]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.path.join("fill")).unwrap();
    }

    /// Returns for each of `secrets` whether another reader of the file finds its key, and whether that is
    /// revoked.
    fn committed(&self, secrets: &[String]) -> Vec<Option<bool>> {
        let starter = self.starter();
        let script = "import sqlite3\n\
                      rows = sqlite3.connect('disk/kv.db').execute('SELECT hex(hash), revoked_at FROM api_key')\n\
                      for hash, revoked_at in rows: print(hash.lower(), revoked_at is not None)";
        let mut command = Command::new(&starter[0]);
        let done = command.args(&starter[1..]).args(["python3", "-c", script]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let rows = String::from_utf8(done.stdout).unwrap();
        let is_revoked = |secret: &String| {
            let hash = KeyHash::of(secret).to_hex();
            rows.lines().find_map(|row| Some(row.strip_prefix(&hash)?.trim() == "True"))
        };
        secrets.iter().map(is_revoked).collect()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The file system is unmounted with its last process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Creates a key. Returns its secret and id if the creation was acknowledged.
fn create(home: &Home, server: &Server) -> Option<(String, String)> {
    let arguments = ["-o", "json", "key", "create", "--name", "n", "--owner", "o", "--addr", &server.address];
    let done = home.run(&arguments);
    if done.status != 0 {
        assert!(!done.stderr.contains("panic"), "{}", done.stderr);
        return None;
    }
    let created: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    Some((text(&created["secret"]), text(&created["key"]["id"])))
}

/// All acknowledged keys are in the file, while the disk is full and afterwards.
#[test]
fn a_full_disk_loses_no_acknowledged_change() {
    let disk = SmallDisk::mount(2_048);
    let server = disk.serve();
    let (early, early_id) = create(&disk.home, &server).unwrap();
    let mut acknowledged = vec![early];
    for _ in 0..2 {
        disk.fill();
        let mut refused = 0;
        // A few keys may fit into free space in the file.
        for _ in 0..200 {
            match create(&disk.home, &server) {
                Some((secret, _)) => acknowledged.push(secret),
                None => refused += 1,
            }
            if refused == 4 {
                break;
            }
        }
        assert_eq!(refused, 4, "the disk is not full");
        let found = disk.committed(&acknowledged);
        assert!(found.iter().all(Option::is_some), "while it is full: {found:?}");
        disk.empty();
        wait_for("a change", || {
            let (secret, _) = create(&disk.home, &server)?;
            acknowledged.push(secret);
            Some(())
        });
        for _ in 0..5 {
            acknowledged.push(create(&disk.home, &server).expect("there is room").0);
        }
    }
    let revoke = disk.home.run(&["key", "revoke", &early_id, "--addr", &server.address]);
    assert_eq!(revoke.status, 0, "{}", revoke.stderr);
    let found = disk.committed(&acknowledged);
    assert_eq!(found[0], Some(true), "the revocation");
    assert!(found[1..].iter().all(|found| *found == Some(false)), "{found:?}");
}

/// A file that must not grow causes an I/O error in SQLite.
#[tokio::test(flavor = "multi_thread")]
async fn an_io_error_loses_no_acknowledged_change() {
    let home = Home::new();
    let url = format!("store.url=sqlite://{}", home.path().join("kv.db").display());
    // The shell ignores the signal of the limit, which would end the process.
    let server =
        home.serve_by(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"], &[&url, "admin.insecure=true"]);
    let limit = |bytes: Option<u64>| {
        let pid = rustix::process::Pid::from_raw(server.id().try_into().unwrap());
        let limit = rustix::process::Rlimit { current: bytes, maximum: None };
        rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).unwrap();
    };
    let mut acknowledged = vec![create(&home, &server).unwrap().0];
    for _ in 0..3 {
        let size = std::fs::metadata(home.path().join("kv.db-wal")).unwrap().len();
        limit(Some(size));
        let refused = (0..3).filter(|_| match create(&home, &server) {
            Some((secret, _)) => {
                acknowledged.push(secret);
                false
            }
            None => true,
        });
        assert!(refused.count() > 0, "nothing failed");
        limit(None);
        for _ in 0..3 {
            wait_for("a change", || {
                acknowledged.push(create(&home, &server)?.0);
                Some(())
            });
        }
    }
    let log = home.read("stderr");
    assert!(log.contains("disk I/O error") || log.contains("disk is full"), "{log}");
    let reader = SqlRepository::open_sqlite(&home.path().join("kv.db"), SqlOptions::default()).await.unwrap();
    for secret in &acknowledged {
        assert!(reader.get_by_hash(&KeyHash::of(secret)).await.unwrap().is_some());
    }
}
