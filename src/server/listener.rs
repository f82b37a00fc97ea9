//! Binds the addresses to listen on.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::connection::Accepted;
use super::{ListenAddr, Role};

/// Maximum number of connections that wait to be accepted. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Mode of a Unix socket. The owner and the group of the server may connect.
const SOCKET_MODE: u32 = 0o660;

/// A bound address. A TCP address refuses connections until [`listen`](Self::listen). A Unix socket accepts
/// them, and they wait: without a listener, another server would take its file for one that a killed server
/// left behind.
#[derive(Debug)]
pub(crate) struct BoundAddress {
    kind: BoundKind,
    address: ListenAddr,
    role: Role,
}

#[derive(Debug)]
enum BoundKind {
    Tcp(TcpSocket),
    Unix { listener: UnixListener, file: SocketFile },
}

/// An address that the server listens on. It belongs to the runtime on which it was created.
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

impl BoundAddress {
    /// Binds `address` for `role`.
    ///
    /// # Errors
    /// Returns an error if the address is in use, may not be bound, or does not exist on this machine.
    pub(crate) fn bind(address: &ListenAddr, role: Role) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(tcp) => {
                let socket = bind_tcp(*tcp)?;
                let address = ListenAddr::Tcp(socket.local_addr()?);
                Ok(Self { kind: BoundKind::Tcp(socket), address, role })
            }
            ListenAddr::Unix(path) => {
                let listener = bind_unix(path)?;
                let kind = BoundKind::Unix { listener, file: SocketFile(path.clone()) };
                Ok(Self { kind, address: address.clone(), role })
            }
        }
    }

    /// Listens on the address.
    ///
    /// # Errors
    /// Returns an error if another process listens on the address by now.
    pub(crate) fn listen(self) -> io::Result<Listener> {
        let Self { kind, address, role } = self;
        let kind = match kind {
            BoundKind::Tcp(socket) => Kind::Tcp(socket.listen(BACKLOG)?),
            BoundKind::Unix { listener, file } => Kind::Unix { listener, _file: file },
        };
        Ok(Listener { kind, address, role })
    }
}

impl Listener {
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

/// Binds a TCP address without listening on it.
pub(super) fn bind_tcp(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    fn bind(address: &str) -> io::Result<BoundAddress> {
        BoundAddress::bind(&address.parse().unwrap(), Role::Both)
    }

    #[tokio::test]
    async fn a_bound_tcp_address_refuses_connections_until_it_listens() {
        let bound = bind("127.0.0.1:0").unwrap();
        let ListenAddr::Tcp(address) = bound.address else { panic!("not a TCP address") };
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let listener = bound.listen().unwrap();
        let _connection = TcpStream::connect(address).unwrap();
        listener.accept().await.unwrap();
        assert_eq!(bind(&address.to_string()).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    /// Both can bind the address, because it may be in use by connections of an earlier server.
    #[tokio::test]
    async fn only_one_of_two_servers_can_listen() {
        let first = bind("127.0.0.1:0").unwrap();
        let second = bind(&first.address.to_string()).unwrap();
        let _listener = first.listen().unwrap();
        assert_eq!(second.listen().unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_bound_unix_socket_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("unix:{}", folder.path().join("socket").display());
        let bound = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(bound);
        bind(&path).unwrap();
    }
}
