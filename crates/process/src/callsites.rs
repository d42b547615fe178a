//! Events of other processes, made events of this one: `tracing` wants a callsite that lives for ever behind each.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use hatchery_actor::trace::TraceContext;
use hatchery_wire::{LogField, LogHead, LogValue};
use tracing::callsite::{Identifier, register};
use tracing::field::{Field, FieldSet, Value, display};
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Callsite, Dispatch, Event, Level, Metadata, dispatcher};

/// Distinct callsites that are kept, each for ever: programs have hundreds. What goes beyond shares one a level.
const MOST: usize = 4096;
/// A set of values has at most so many, for `tracing` takes them as an array.
const VALUES: usize = 32;
/// What every event of a worker has, after its own fields.
const OURS: [&str; 7] =
    ["more", "spans", "trace_id", "span_id", "worker.path", "worker.pid", "worker.incarnation"];
/// Fields of its own that stay fields; the message is one of them, and the rest goes into `more`.
const OWN: usize = VALUES - OURS.len();

/// A callsite of another process.
struct Site {
    metadata: OnceLock<Metadata<'static>>,
    /// The same as in the metadata, ready for use.
    fields: OnceLock<Vec<Field>>,
    told: AtomicBool,
}

impl Callsite for Site {
    /// What is cached here is the interest of all subscribers together, or of the one of some thread; the subscriber of
    /// the run is asked each time instead.
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        // Set before anybody gets to see it.
        self.metadata.get().expect("a callsite is made with its metadata")
    }
}

/// What tells callsites apart. `None` for a file is the one that many share.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    level: u8,
    target: &'a str,
    name: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    fields: Vec<&'a str>,
}

impl Key<'_> {
    fn is(&self, site: &Site) -> bool {
        let metadata = site.metadata();
        let fields = metadata.fields();
        level(self.level) == *metadata.level()
            && self.target == metadata.target()
            && self.file == metadata.file()
            && self.line == metadata.line()
            && fields.len() == 1 + self.fields.len() + OURS.len()
            && fields.iter().skip(1).zip(&self.fields).all(|(known, name)| known.name() == *name)
            && self.name.is_none_or(|name| name == metadata.name())
    }
}

#[derive(Default)]
struct Table {
    hasher: RandomState,
    sites: HashMap<u64, Vec<&'static Site>>,
    count: usize,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// The callsite of this key, and whether it is its own.
fn site(key: &Key<'_>) -> (&'static Site, bool) {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.get_or_insert_default();
    if let Some(site) = table.find(key) {
        return (site, true);
    }
    if table.count < MOST {
        return (table.add(key), true);
    }
    let shared = Key {
        level: key.level,
        target: "hatchery::logs",
        name: None,
        file: None,
        line: None,
        fields: vec![],
    };
    (table.find(&shared).unwrap_or_else(|| table.add(&shared)), false)
}

impl Table {
    fn find(&self, key: &Key<'_>) -> Option<&'static Site> {
        let sites = self.sites.get(&self.hasher.hash_one(key))?;
        sites.iter().copied().find(|site| key.is(site))
    }

    fn add(&mut self, key: &Key<'_>) -> &'static Site {
        let site = make(key);
        self.sites.entry(self.hasher.hash_one(key)).or_default().push(site);
        self.count += 1;
        site
    }
}

/// Leaks a callsite.
fn make(key: &Key<'_>) -> &'static Site {
    let kept = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let site: &'static Site = Box::leak(Box::new(Site {
        metadata: OnceLock::new(),
        fields: OnceLock::new(),
        told: AtomicBool::new(false),
    }));
    let own = key.fields.iter().map(|name| kept(name));
    let names: Vec<&'static str> = std::iter::once("message").chain(own).chain(OURS).collect();
    let fields = FieldSet::new(Vec::leak(names), Identifier(site));
    let file = key.file.map(kept);
    let name = match (key.name, file, key.line) {
        (Some(name), ..) => kept(name),
        (None, Some(file), Some(line)) => kept(&format!("event {file}:{line}")),
        _ => "event",
    };
    let metadata =
        Metadata::new(name, kept(key.target), level(key.level), file, key.line, None, fields, Kind::EVENT);
    let fields = metadata.fields().iter().collect();
    let _ = (site.metadata.set(metadata), site.fields.set(fields));
    site
}

/// Makes an event of another process one of this one, for this subscriber.
///
/// It is checked and dispatched as the macros of `tracing` do it, filters on level and target included. What the
/// subscriber does with it is foreign code: it may block, or panic.
pub(crate) fn emit(dispatch: &Dispatch, head: &LogHead<'_>, fields: &[LogField<'_>]) {
    let own = &fields[..fields.len().min(OWN - 1)];
    let key = Key {
        level: head.level,
        target: head.target,
        name: head.name,
        file: head.file,
        line: head.line,
        fields: own.iter().map(|(name, _)| *name).collect(),
    };
    let (site, is_own) = site(&key);
    let own = if is_own { own } else { &[] };
    if !site.told.swap(true, Ordering::Relaxed) {
        // Foreign code, so without any lock. `tracing` may tell the subscriber of this thread alone.
        dispatcher::with_default(dispatch, || register(site));
    }
    let metadata = site.metadata();
    if !dispatch.enabled(metadata) {
        return;
    }
    let mut more = String::new();
    if !is_own {
        // What the callsite would have said.
        let _ = write!(more, "target={}", head.target);
        if let (Some(file), Some(line)) = (head.file, head.line) {
            let _ = write!(more, " at={file}:{line}");
        }
    }
    for (name, value) in &fields[own.len()..] {
        let space = if more.is_empty() { "" } else { " " };
        let _ = match value {
            LogValue::Bool(value) => write!(more, "{space}{name}={value}"),
            LogValue::I64(value) => write!(more, "{space}{name}={value}"),
            LogValue::U64(value) => write!(more, "{space}{name}={value}"),
            LogValue::F64(value) => write!(more, "{space}{name}={value}"),
            LogValue::Str(value) => write!(more, "{space}{name}={value:?}"),
            LogValue::Shown(value) => write!(more, "{space}{name}={value}"),
        };
    }
    let trace = TraceContext::of_wire(head.trace);
    let ids = trace.map(|trace| (format!("{:032x}", trace.trace_id()), format!("{:016x}", trace.span_id())));

    let message = head.message.map(display);
    let own: Vec<Box<dyn Value + '_>> = own.iter().map(|(_, value)| boxed(*value)).collect();
    let more = Some(more).filter(|more| !more.is_empty()).map(display);
    let spans = head.spans.map(display);
    let (trace_id, span_id) =
        (ids.as_ref().map(|ids| display(&ids.0)), ids.as_ref().map(|ids| display(&ids.1)));
    let path = display(head.path);
    let fields = site.fields.get().map(Vec::as_slice).unwrap_or_default();
    let Some(first) = fields.first() else { return };
    let mut values: [(&Field, Option<&dyn Value>); VALUES] = [(first, None); VALUES];
    let all = std::iter::once(message.as_ref().map(|value| value as &dyn Value))
        .chain(own.iter().map(|value| Some(&**value as &dyn Value)))
        .chain([
            more.as_ref().map(|value| value as &dyn Value),
            spans.as_ref().map(|value| value as &dyn Value),
            trace_id.as_ref().map(|value| value as &dyn Value),
            span_id.as_ref().map(|value| value as &dyn Value),
            Some(&path as &dyn Value),
            Some(&head.pid as &dyn Value),
            Some(&head.incarnation as &dyn Value),
        ]);
    for ((place, field), value) in values.iter_mut().zip(fields).zip(all) {
        *place = (field, value);
    }
    dispatch.event(&Event::new(metadata, &metadata.fields().value_set(&values)));
}

fn boxed(value: LogValue<'_>) -> Box<dyn Value + '_> {
    match value {
        LogValue::Bool(value) => Box::new(value),
        LogValue::I64(value) => Box::new(value),
        LogValue::U64(value) => Box::new(value),
        LogValue::F64(value) => Box::new(value),
        LogValue::Str(value) => Box::new(value),
        LogValue::Shown(value) => Box::new(display(value)),
    }
}

fn level(rank: u8) -> Level {
    match rank {
        1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}
