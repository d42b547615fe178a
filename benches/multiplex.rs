//! The ruler of throughput: a client by hand that many tasks share and that writes all that is ready at once, made of
//! what everybody would take: tokio's channels, its length-prefix codec, and a table of who waits.

use std::collections::HashMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{Decoder, LengthDelimitedCodec};

/// `u32 length | u64 id | payload`, as both sides write it.
const ID: usize = 8;
/// Bytes asked for in one read.
const READ: usize = 64 * 1024;

type Call = (Vec<u8>, oneshot::Sender<Bytes>);

/// Shared by those who ask; a task of its own drives the socket.
#[derive(Clone)]
pub struct Client {
    calls: mpsc::Sender<Call>,
}

impl Client {
    /// On this socket.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        let (calls, called) = mpsc::channel(1024);
        tokio::spawn(drive(UnixStream::from_std(stream)?, called));
        Ok(Client { calls })
    }

    /// One request and its answer, among others.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn ask(&self, payload: Vec<u8>) -> io::Result<Bytes> {
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.calls.send((payload, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

/// Until the last client or the peer is gone.
async fn drive(stream: UnixStream, mut calls: mpsc::Receiver<Call>) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let (mut read, mut write) = (BytesMut::new(), BytesMut::new());
    let (mut codec, mut waiting, mut batch) = (LengthDelimitedCodec::new(), HashMap::new(), Vec::new());
    let mut next = 0_u64;
    loop {
        read.reserve(READ / 16);
        tokio::select! {
            biased;
            n = from.read_buf(&mut read) => {
                if n? == 0 {
                    return Ok(());
                }
                while let Some(mut frame) = codec.decode(&mut read)? {
                    let id = frame.get_u64();
                    if let Some(waits) = waiting.remove(&id) {
                        let _: Result<(), Bytes> = oneshot::Sender::send(waits, frame.freeze());
                    }
                }
            }
            n = calls.recv_many(&mut batch, 1024) => {
                if n == 0 {
                    return Ok(());
                }
                for (payload, answer) in batch.drain(..) {
                    put(&mut write, next, &payload);
                    waiting.insert(next, answer);
                    next += 1;
                }
                to.write_all_buf(&mut write).await?;
            }
        }
    }
}

fn put(out: &mut BytesMut, id: u64, payload: &[u8]) {
    out.reserve(4 + ID + payload.len());
    out.put_u32((ID + payload.len()) as u32);
    out.put_u64(id);
    out.put_slice(payload);
}

/// The other side: answers each request with its payload, all that one read brought in one write.
///
/// # Errors
/// The peer is gone.
pub async fn echo(mut stream: UnixStream) -> io::Result<()> {
    let (mut read, mut write, mut codec) = (BytesMut::new(), BytesMut::new(), LengthDelimitedCodec::new());
    loop {
        read.reserve(READ);
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        while let Some(mut frame) = codec.decode(&mut read)? {
            put(&mut write, frame.get_u64(), &frame);
        }
        stream.write_all_buf(&mut write).await?;
    }
}

/// Sends a message and reads the answer into a fresh buffer, with a length of eight bytes before each: as fast as a
/// socket takes large ones there and back.
///
/// # Errors
/// The peer is gone.
pub async fn bulk(stream: &mut UnixStream, message: &[u8]) -> io::Result<Vec<u8>> {
    send_bulk(stream, message).await?;
    recv_bulk(stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The other side of it.
///
/// # Errors
/// The peer is gone.
pub async fn echo_bulk(mut stream: UnixStream) -> io::Result<()> {
    while let Some(message) = recv_bulk(&mut stream).await? {
        send_bulk(&mut stream, &message).await?;
    }
    Ok(())
}

async fn send_bulk(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(&(message.len() as u64).to_be_bytes()).await?;
    stream.write_all(message).await
}

async fn recv_bulk(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut message = Vec::with_capacity(u64::from_be_bytes(length) as usize);
    while message.len() < message.capacity() {
        if stream.read_buf(&mut message).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(message))
}
