//! The `tracing` events of a worker, written into the pipe to its parent without ever waiting.
//!
//! An event that the pipe does not take is dropped and counted; the count travels with the next one that fits.

use std::fmt::{Debug, Write};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hatchery_actor::runner::SPAN_TARGET;
use hatchery_actor::trace::TraceContext;
use hatchery_wire::{LOG_RECORD, LogFields, LogHead, LogValue, put_log_record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::filter;

/// After the pipe was full, this long nothing is tried: a worker in a tight loop of events shall not spend its time on
/// formatting what nobody will read.
const FULL: Duration = Duration::from_micros(100);
/// Most bytes of what one span says.
const SPAN: usize = 256;
/// How long a worker that leaves waits for room to say how many events it had to drop.
const LAST: Duration = Duration::from_millis(100);

/// The way up of this process's events; only in a worker whose root wants them.
static UP: OnceLock<Up> = OnceLock::new();

struct Up {
    pipe: OwnedFd,
    path: String,
    incarnation: u64,
    /// Events dropped and not yet told.
    lost: AtomicU64,
    begun: Instant,
    /// Until when the pipe counts as full, in nanoseconds since `begun`.
    full_until: AtomicU64,
}

/// What became of a write.
enum Written {
    Whole,
    Full,
    /// The parent reads no more.
    Closed,
}

/// Makes this pipe the way up, with the filter to begin with.
pub(crate) fn begin(pipe: OwnedFd, path: &str, incarnation: u64, directives: &str) {
    filter::begin_with(directives);
    let up = Up {
        pipe,
        path: path.to_owned(),
        incarnation,
        lost: AtomicU64::new(0),
        begun: Instant::now(),
        full_until: AtomicU64::new(0),
    };
    let _ = UP.set(up);
}

/// Whether the root wants the events of this process.
pub(crate) fn is_wanted() -> bool {
    UP.get().is_some()
}

/// Makes the layer this worker's subscriber, unless it has one already.
pub(crate) fn install() {
    if is_wanted() {
        if !tracing::dispatcher::has_been_set() {
            let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer()));
        }
        filter::begun();
    }
}

/// See [`crate::logs::layer`].
pub(crate) fn layer<S>() -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    Forward.with_filter(filter::Current)
}

/// Passes on whole records of workers below, and waits for room if there is none: their own pipes fill up meanwhile, and
/// they drop and count at the source. False when the parent reads no more.
pub(crate) fn pass_on(records: &[u8]) -> bool {
    let Some(up) = UP.get() else { return false };
    loop {
        match up.write(records) {
            Written::Whole => return true,
            Written::Closed => return false,
            Written::Full => drop(poll(&mut [PollFd::new(&up.pipe, PollFlags::OUT)], None)),
        }
    }
}

/// Says how many events were dropped, if that has not been said.
pub(crate) fn finish() {
    let Some(up) = UP.get() else { return };
    if up.lost.load(Ordering::Relaxed) == 0 {
        return;
    }
    let left = Timespec { tv_sec: 0, tv_nsec: i64::from(LAST.subsec_nanos()) };
    let _ = poll(&mut [PollFd::new(&up.pipe, PollFlags::OUT)], Some(&left));
    // A record without a target tells of nothing else.
    up.send(LogHead { level: rank(&Level::WARN), ..LogHead::default() }, &LogFields::default());
}

impl Up {
    /// One write of at most [`LOG_RECORD`] bytes, so whole or not at all.
    fn write(&self, bytes: &[u8]) -> Written {
        debug_assert!(bytes.len() <= LOG_RECORD);
        loop {
            match rustix::io::write(&self.pipe, bytes) {
                Ok(_) => return Written::Whole,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Written::Full,
                Err(_) => return Written::Closed,
            }
        }
    }

    fn since_begun(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_full(&self) -> bool {
        let until = self.full_until.load(Ordering::Relaxed);
        until != 0 && self.since_begun() < until
    }

    fn send(&self, head: LogHead<'_>, fields: &LogFields) {
        // Taken before it is sure that they can be told; put back if not.
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let head = LogHead {
            lost,
            pid: std::process::id(),
            incarnation: self.incarnation,
            path: &self.path,
            ..head
        };
        let mut bytes = BytesMut::new();
        put_log_record(&mut bytes, &head, fields);
        match self.write(&bytes) {
            Written::Whole => {}
            Written::Full => {
                self.lost.fetch_add(lost + 1, Ordering::Relaxed);
                let until = self.since_begun() + u64::try_from(FULL.as_nanos()).unwrap_or(0);
                self.full_until.store(until, Ordering::Relaxed);
            }
            // Nobody listens any more, and nobody will.
            Written::Closed => filter::change("off".into()),
        }
    }
}

/// 1 for an error, to 5 for a trace.
fn rank(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The layer itself.
struct Forward;

/// What a span says, kept with it.
struct Said(String);

impl<S> Layer<S> for Forward
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        if attributes.metadata().target() == SPAN_TARGET {
            // The trace that it is about is a field of each event.
            return;
        }
        // Formatted first: what is formatted is foreign code, and must not run under the span's lock.
        let mut text = Text::default();
        attributes.record(&mut text);
        if let Some(span) = cx.span(id) {
            span.extensions_mut().replace(Said(text.said));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        let mut text = Text::default();
        values.record(&mut text);
        if let Some(span) = cx.span(id) {
            if let Some(Said(said)) = span.extensions_mut().get_mut::<Said>() {
                if !said.is_empty() && !text.said.is_empty() && said.len() < SPAN {
                    said.push(' ');
                }
                Limited { text: said, most: SPAN }.push(&text.said);
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let Some(up) = UP.get() else { return };
        if up.is_full() {
            up.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let metadata = event.metadata();
        let mut parts = Parts::default();
        event.record(&mut parts);
        let spans = spans_of(event, &cx);
        let trace = TraceContext::current().map(|trace| trace.to_wire());
        let head = LogHead {
            level: rank(metadata.level()),
            target: metadata.target(),
            // The name that tracing makes up says what file and line say.
            name: Some(metadata.name()).filter(|name| !name.starts_with("event ")),
            file: metadata.file(),
            line: metadata.line(),
            spans: Some(&spans),
            trace: trace.as_deref().unwrap_or_default(),
            message: Some(&parts.message),
            ..LogHead::default()
        };
        up.send(head, &parts.fields);
    }
}

/// `request{id=7}:decode{frame=3}`, outermost first.
fn spans_of<S: Subscriber + for<'a> LookupSpan<'a>>(event: &Event<'_>, cx: &Context<'_, S>) -> String {
    let mut text = String::new();
    for span in cx.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
        let extensions = span.extensions();
        let Some(Said(said)) = extensions.get::<Said>() else { continue };
        if !text.is_empty() {
            text.push(':');
        }
        text.push_str(span.name());
        if !said.is_empty() {
            text.push('{');
            text.push_str(said);
            text.push('}');
        }
    }
    text
}

/// Takes so many bytes and swallows the rest: what formats itself into this never sees an error.
struct Limited<'a> {
    text: &'a mut String,
    most: usize,
}

impl Limited<'_> {
    fn push(&mut self, part: &str) {
        let mut end = self.most.saturating_sub(self.text.len()).min(part.len());
        while !part.is_char_boundary(end) {
            end -= 1;
        }
        self.text.push_str(&part[..end]);
    }
}

impl Write for Limited<'_> {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        self.push(part);
        Ok(())
    }
}

/// The fields of a span as one text.
#[derive(Default)]
struct Text {
    said: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut out = Limited { text: &mut self.said, most: SPAN };
        if !out.text.is_empty() {
            out.push(" ");
        }
        // A message of a span stands for itself.
        if field.name() != "message" {
            out.push(field.name());
            out.push("=");
        }
        let _ = write!(out, "{value:?}");
    }
}

/// Message and fields of an event.
#[derive(Default)]
struct Parts {
    message: String,
    fields: LogFields,
}

impl Visit for Parts {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push(field.name(), LogValue::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push(field.name(), LogValue::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push(field.name(), LogValue::U64(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push(field.name(), LogValue::F64(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields.push(field.name(), LogValue::Str(value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(Limited { text: &mut self.message, most: LOG_RECORD + 1 }, "{value:?}");
        } else {
            self.fields.push(field.name(), LogValue::Shown(&shown(value)));
        }
    }
}

fn shown(value: &dyn Debug) -> String {
    let mut text = String::new();
    // More than travels, so that it is seen to be cut.
    let _ = write!(Limited { text: &mut text, most: LOG_RECORD }, "{value:?}");
    text
}
