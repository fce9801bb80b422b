//! A TCP connection that can end as connections do in production: by a reset, or in the middle of what was being written.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// One end of a connection, below TLS.
pub(crate) struct Wire {
    stream: TcpStream,
    ending: Ending,
}

/// How a connection is going to end; it can be set while the connection is in use. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Ending(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    reset: bool,
    /// How many bytes can still be written; `None` is no limit.
    left: Option<usize>,
}

impl Ending {
    /// The close becomes a reset, as of a server that was killed.
    pub(crate) fn reset(&self) {
        self.0.lock().reset = true;
    }

    /// Nothing is written after this many bytes, so that anything longer breaks off.
    pub(crate) fn break_off_after(&self, bytes: usize) {
        self.0.lock().left = Some(bytes);
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, ending: Ending) -> Self {
        Self { stream, ending }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let left = self.ending.0.lock().left.unwrap_or(usize::MAX);
        if left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "injected")));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &buffer[..left.min(buffer.len())]))?;
        if let Some(left) = &mut self.ending.0.lock().left {
            *left -= written;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.ending.0.lock().reset {
            // The client may have been quicker.
            let _ = self.stream.set_zero_linger();
        }
    }
}
