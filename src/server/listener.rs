//! Binds the addresses to listen on.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::connection::Accepted;
use super::{ListenAddr, Role};

/// Maximum number of connections that wait to be accepted. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Mode of a Unix socket. The owner and the group of the server may connect.
const SOCKET_MODE: u32 = 0o660;

/// A bound address. It belongs to the runtime on which it was created.
#[derive(Debug)]
pub(crate) struct Listener {
    kind: Kind,
    address: ListenAddr,
    role: Role,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Removes the file of a Unix socket when it is dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may remain, because the next start removes a socket that nobody listens on.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds `address` for `role`.
    ///
    /// # Errors
    /// Returns an error if the address is in use, may not be bound, or does not exist on this machine.
    pub(crate) fn bind(address: &ListenAddr, role: Role) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(tcp) => {
                let listener = bind_tcp(*tcp)?;
                let address = ListenAddr::Tcp(listener.local_addr()?);
                Ok(Self { kind: Kind::Tcp(listener), address, role })
            }
            ListenAddr::Unix(path) => {
                let listener = bind_unix(path)?;
                let kind = Kind::Unix { listener, _file: SocketFile(path.clone()) };
                Ok(Self { kind, address: address.clone(), role })
            }
        }
    }

    /// Returns the address. For TCP it has the port that was assigned.
    #[must_use]
    pub(crate) fn address(&self) -> &ListenAddr {
        &self.address
    }

    /// Returns the role of the address.
    #[must_use]
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream.into_std()?, peer))
            }
            Kind::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream.into_std()?))
            }
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    // The socket that a killed server left behind refuses connections. A socket that is in use accepts them,
    // and `bind` fails below.
    if is_socket && StdUnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}
