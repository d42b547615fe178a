//! The ruler: the same jobs by hand, with nothing but tokio and its length-prefix codec.
//!
//! Two processes and a socket between them, which is the child's stdin. The child sends back what it gets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

use crate::multiplex::{echo, echo_bulk};

/// A socket for length-prefixed messages.
pub struct Socket {
    stream: UnixStream,
    codec: LengthDelimitedCodec,
    read: BytesMut,
    write: BytesMut,
}

impl Socket {
    /// Around a connected stream.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket {
            stream: UnixStream::from_std(stream)?,
            codec: LengthDelimitedCodec::new(),
            read: BytesMut::with_capacity(8 * 1024),
            write: BytesMut::with_capacity(8 * 1024),
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn send(&mut self, message: Bytes) -> io::Result<()> {
        self.codec.encode(message, &mut self.write)?;
        self.stream.write_all_buf(&mut self.write).await
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// The peer ended in the middle of one.
    pub async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.codec.decode(&mut self.read)? {
                return Ok(Some(message.freeze()));
            }
            self.read.reserve(4 * 1024);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return self.codec.decode_eof(&mut self.read).map(|last| last.map(BytesMut::freeze));
            }
        }
    }
}

/// The other process, as its parent sees it.
pub struct Peer {
    /// The way to it.
    pub socket: Socket,
    process: Child,
}

impl Peer {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(program: impl AsRef<Path>) -> io::Result<Peer> {
        Peer::start(program, Job::Frames)
    }

    /// Starts it with a job that answers frames.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: impl AsRef<Path>, job: Job) -> io::Result<Peer> {
        let (process, ours) = start(program, job)?;
        Ok(Peer { socket: Socket::new(ours)?, process })
    }

    /// One round trip.
    ///
    /// # Errors
    /// It is gone.
    pub async fn ask(&mut self, message: Bytes) -> io::Result<Bytes> {
        self.socket.send(message).await?;
        self.socket.recv().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Its process id, while it has not been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Ends it and waits for its end.
    ///
    /// # Errors
    /// None is known.
    pub async fn end(mut self) -> io::Result<()> {
        drop(self.socket);
        self.process.wait().await.map(drop)
    }
}

/// What the other process sends back, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Length-prefixed frames, one at a time.
    Frames,
    /// The same, and those of everybody who [connects](connect). Its first answer says that it listens.
    Listen,
    /// Those of a [`Client`](crate::multiplex::Client).
    Multiplex,
    /// Large messages.
    Bulk,
    /// A few bytes, with no buffer but a small one: for a process that mostly does nothing.
    Idle,
    /// None: it only computes, until its parent has gone.
    Busy,
}

/// Starts the other process with a job; gives this end of the socket.
///
/// # Errors
/// It cannot be started.
pub fn start(program: impl AsRef<Path>, job: Job) -> io::Result<(Child, std::os::unix::net::UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let process = Command::new(program.as_ref())
        .arg(format!("{job:?}"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .kill_on_drop(true)
        .spawn()?;
    Ok((process, ours))
}

/// One more socket to a process that listens.
///
/// # Errors
/// It does not.
pub fn connect(pid: u32) -> io::Result<Socket> {
    Socket::new(std::os::unix::net::UnixStream::connect_addr(&address(pid)?)?)
}

/// A name that is no file.
fn address(pid: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("hatchery-ruler-{pid}"))
}

/// What the other process does.
///
/// # Errors
/// Its stdin is no socket, or the parent is gone.
pub fn child() -> io::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let job = std::env::args().nth(1).unwrap_or_default();
    if job == "Busy" {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
        return io::copy(&mut io::stdin(), &mut io::sink()).map(drop);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let stream = std::os::unix::net::UnixStream::from(stdin);
        if job == "Listen" {
            let listener = UnixListener::bind_addr(&address(std::process::id())?)?;
            tokio::spawn(listen(listener));
        } else if job != "Frames" {
            stream.set_nonblocking(true)?;
            let stream = UnixStream::from_std(stream)?;
            return match job.as_str() {
                "Bulk" => echo_bulk(stream).await,
                "Idle" => echo_few(stream).await,
                _ => echo(stream).await,
            };
        }
        echo_frames(Socket::new(stream)?).await
    })
}

async fn listen(listener: UnixListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo_frames(Socket::new(stream.into_std()?)?));
    }
}

async fn echo_frames(mut socket: Socket) -> io::Result<()> {
    while let Some(message) = socket.recv().await? {
        socket.send(message).await?;
    }
    Ok(())
}

async fn echo_few(mut stream: UnixStream) -> io::Result<()> {
    let mut few = [0; 64];
    loop {
        let n = stream.read(&mut few).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&few[..n]).await?;
    }
}
