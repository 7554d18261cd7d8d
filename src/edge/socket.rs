//! A client's socket as connections use it: reads and writes never wait, and `ready` says when to try again.
//!
//! With TLS there is a second place where bytes can be: what rustls has encrypted and the kernel has not taken
//! (`has_unsent`), and what it has decrypted and nobody has read (`unread`). The first waits until the socket can be
//! written; the second counts as readable, whatever the kernel says.

use std::io::{self, Read, Write};

use parking_lot::{Mutex, MutexGuard};
use rustls::ServerConnection;
use tokio::{io::Interest, net::TcpStream};
use tokio_rustls::server::TlsStream;

/// What rustls may hold for the kernel: one record's worth, as the kernel itself holds for the network.
const UNSENT_BYTES_MAX: usize = 16 * 1024;
/// So many reads from the kernel may yield no byte for us before others have their turn. rustls ends connections that
/// send many empty records, or many key updates, in a row; not those that mix them.
const EMPTY_READS_MAX: usize = 16;

/// A client's socket.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// A TLS connection after its handshake.
pub(super) struct Tls {
    tcp: TcpStream,
    session: Mutex<Session>,
}

struct Session {
    rustls: ServerConnection,
    /// No read has said yet that nothing is left, here and in the kernel.
    unread: bool,
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl From<TlsStream<TcpStream>> for Socket {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, mut rustls) = stream.into_inner();
        rustls.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        // What came with the request's last bytes may be decrypted already.
        Self::Tls(Box::new(Tls { tcp, session: Mutex::new(Session { rustls, unread: true }) }))
    }
}

impl Socket {
    /// Waits until the socket can be read or written; it may be wrong, and only a try takes that back. Cancel safe.
    ///
    /// # Errors
    /// When the socket is gone.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<()> {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) if interest.is_readable() && tls.session.lock().unread => {
                // Others have their turn, however much a peer sends that holds nothing for us.
                tokio::task::yield_now().await;
                return Ok(());
            }
            Self::Tls(tls) => &tls.tcp,
        };
        tcp.ready(interest).await.map(drop)
    }

    /// Reads what is there; 0: the peer has ended.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_read(buffer),
            Self::Tls(tls) => tls.try_read(buffer),
        }
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => tls.try_write(|writer| writer.write(bytes)),
        }
    }

    /// The same with several pieces in one system call.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room.
    pub(super) fn try_write_vectored(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(pieces),
            Self::Tls(tls) => tls.try_write(|writer| writer.write_vectored(pieces)),
        }
    }

    /// Passes on what was written and is not in the kernel yet.
    ///
    /// # Errors
    /// `WouldBlock` when not all of it could be.
    pub(super) fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(&mut tls.session.lock()),
        }
    }

    /// Whether something that was written is not in the kernel yet.
    pub(super) fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.lock().rustls.wants_write(),
        }
    }

    /// Tells the peer that nothing more comes, as far as the socket takes it at once.
    pub(super) fn close(&self) {
        if let Self::Tls(tls) = self {
            let mut session = tls.session.lock();
            session.rustls.send_close_notify();
            // Who does not read does not learn of it.
            let _ = tls.flush(&mut session);
        }
    }
}

impl Tls {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session.lock();
        session.unread = true;
        within_a_turn(|| {
            match session.rustls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The end without a goodbye, which many clients leave out.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(0)),
                read => return read.map(Some),
            }
            // The kernel is asked only when rustls has nothing left: so its `WouldBlock` is true for both.
            if let Err(error) = session.rustls.read_tls(&mut Tcp(&self.tcp)) {
                session.unread = error.kind() != io::ErrorKind::WouldBlock;
                return Err(error);
            }
            let processed = session.rustls.process_new_packets();
            // Answers of the protocol itself, or the alert that says what was wrong; the relay writes the rest.
            match self.flush(&mut session) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Ok(None)
        })
    }

    fn try_write(&self, write: impl FnOnce(&mut rustls::Writer<'_>) -> io::Result<usize>) -> io::Result<usize> {
        let mut session = self.session.lock();
        // Only when the kernel has taken the last write is there room for another one.
        self.flush(&mut session)?;
        let written = write(&mut session.rustls.writer())?;
        match self.flush(&mut session) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(written),
        }
    }

    fn flush(&self, session: &mut MutexGuard<'_, Session>) -> io::Result<()> {
        while session.rustls.wants_write() {
            if session.rustls.write_tls(&mut Tcp(&self.tcp))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// Reads until a read yields something, within bounds. What is left then counts as readable: see [`Socket::ready`].
fn within_a_turn(mut read: impl FnMut() -> io::Result<Option<usize>>) -> io::Result<usize> {
    for _ in 0..EMPTY_READS_MAX {
        if let Some(read) = read()? {
            return Ok(read);
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// The socket as rustls wants it.
struct Tcp<'a>(&'a TcpStream);

impl Read for Tcp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Tcp<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
