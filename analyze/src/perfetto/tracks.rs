//! The tracks of a timeline and the packets on them, written as they come.

use std::collections::BTreeSet;
use std::io::{self, Write};

use prost::Message;

use super::proto::{
    CounterDescriptor, DebugAnnotation, ProcessDescriptor, SEQ_INCREMENTAL_STATE_CLEARED,
    ThreadDescriptor, TracePacket, TrackDescriptor, TrackEvent, UNIT_COUNT, kind,
};

/// The only writer of packets.
const SEQUENCE: u32 = 1;
/// The virtual machine, as a process.
const VM: u64 = 1;
const PID: i32 = 1;
/// Tracks that a vCPU may have.
const PER_VCPU: u64 = 64;

/// A track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Track {
    /// What host threads do.
    Host,
    /// What happens on a vCPU.
    Vcpu(u16),
    /// The cycles that a vCPU has lost.
    Cycles(u16),
    /// Roots of a vCPU. Lifetimes overlap, and slices of one track nest: so several lanes.
    Roots(u16, u8),
    /// Stale windows of a vCPU, in lanes as well.
    Stale(u16, u8),
    /// Translations in the TLB of a physical CPU.
    Occupancy(u16),
}

impl Track {
    /// Lanes of one kind that a vCPU may have.
    pub const LANES: u8 = 24;

    fn uuid(self) -> u64 {
        let of = |vcpu: u16, n: u64| (u64::from(vcpu) + 1) * PER_VCPU + n;
        match self {
            Self::Host => VM + 1,
            Self::Vcpu(v) => of(v, 0),
            Self::Cycles(v) => of(v, 1),
            Self::Roots(v, lane) => of(v, 2 + u64::from(lane)),
            Self::Stale(v, lane) => of(v, 2 + u64::from(Self::LANES) + u64::from(lane)),
            Self::Occupancy(pcpu) => (1 << 32) + u64::from(pcpu),
        }
    }

    fn descriptor(self) -> TrackDescriptor {
        let thread = |n: i32, name: String| ThreadDescriptor {
            pid: Some(PID),
            tid: Some(n),
            thread_name: Some(name),
        };
        let counter = |unit: &str| CounterDescriptor {
            unit: Some(UNIT_COUNT),
            unit_name: Some(unit.to_owned()),
        };
        let mut track = TrackDescriptor {
            uuid: Some(self.uuid()),
            parent_uuid: Some(VM),
            ..TrackDescriptor::default()
        };
        match self {
            Self::Host => track.thread = Some(thread(PID + 1, "host".to_owned())),
            Self::Vcpu(v) => {
                track.thread = Some(thread(PID + 2 + i32::from(v), format!("vCPU {v}")));
            }
            Self::Cycles(v) => {
                track.name = Some(format!("v{v} cycles lost"));
                track.counter = Some(counter("cycles"));
                track.parent_uuid = Some(Self::Vcpu(v).uuid());
            }
            Self::Roots(v, _) => {
                track.name = Some(format!("v{v} roots"));
                track.parent_uuid = Some(Self::Vcpu(v).uuid());
            }
            Self::Stale(v, _) => {
                track.name = Some(format!("v{v} stale"));
                track.parent_uuid = Some(Self::Vcpu(v).uuid());
            }
            Self::Occupancy(pcpu) => {
                track.name = Some(format!("p{pcpu} TLB occupancy"));
                track.counter = Some(counter("translations"));
            }
        }
        track
    }
}

/// What stands on a track at one instant.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    pub category: &'static str,
    pub name: String,
    pub notes: Vec<(&'static str, Note)>,
    pub flows: Vec<u64>,
    pub ends: Vec<u64>,
}

/// A value of a note.
#[derive(Clone, Debug)]
pub(super) enum Note {
    Number(u64),
    Text(String),
}

/// Writes packets. The first error is kept, and nothing is written after it.
pub(super) struct Packets<W: Write> {
    out: W,
    known: BTreeSet<Track>,
    buffer: Vec<u8>,
    first: bool,
    failed: Option<io::Error>,
}

impl<W: Write> Packets<W> {
    /// Begins a trace of a VM of this name.
    pub fn new(out: W, name: String) -> Self {
        let mut packets =
            Self { out, known: BTreeSet::new(), buffer: Vec::new(), first: true, failed: None };
        let process = ProcessDescriptor { pid: Some(PID), process_name: Some(name) };
        let vm = TrackDescriptor { uuid: Some(VM), process: Some(process), ..Default::default() };
        packets.packet(TracePacket { track_descriptor: Some(vm), ..Default::default() });
        packets
    }

    /// What went wrong, if something did.
    pub fn failed(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Makes a track known, also where nothing is on it.
    pub fn declare(&mut self, track: Track) {
        if self.known.insert(track) {
            let track_descriptor = Some(track.descriptor());
            self.packet(TracePacket { track_descriptor, ..Default::default() });
        }
    }

    pub fn instant(&mut self, time: u64, track: Track, mark: Mark) {
        self.event(time, track, kind::INSTANT, mark);
    }

    pub fn begin(&mut self, time: u64, track: Track, mark: Mark) {
        self.event(time, track, kind::SLICE_BEGIN, mark);
    }

    pub fn end(&mut self, time: u64, track: Track) {
        self.event(time, track, kind::SLICE_END, Mark::default());
    }

    pub fn counter(&mut self, time: u64, track: Track, value: u64) {
        self.declare(track);
        let event = TrackEvent {
            kind: Some(kind::COUNTER),
            track_uuid: Some(track.uuid()),
            counter_value: Some(i64::try_from(value).unwrap_or(i64::MAX)),
            ..Default::default()
        };
        self.at(time, event);
    }

    fn event(&mut self, time: u64, track: Track, kind: i32, mark: Mark) {
        self.declare(track);
        let Mark { category, name, notes, flows, ends } = mark;
        let annotation = |(name, note): (&str, Note)| {
            let name = Some(name.to_owned());
            match note {
                Note::Number(n) => {
                    DebugAnnotation { name, uint_value: Some(n), ..Default::default() }
                }
                Note::Text(text) => {
                    DebugAnnotation { name, string_value: Some(text), ..Default::default() }
                }
            }
        };
        let event = TrackEvent {
            debug_annotations: notes.into_iter().map(annotation).collect(),
            kind: Some(kind),
            track_uuid: Some(track.uuid()),
            categories: if category.is_empty() { Vec::new() } else { vec![category.to_owned()] },
            name: (!name.is_empty()).then_some(name),
            counter_value: None,
            flow_ids: flows,
            terminating_flow_ids: ends,
        };
        self.at(time, event);
    }

    fn at(&mut self, time: u64, event: TrackEvent) {
        let (timestamp, track_event) = (Some(time), Some(event));
        self.packet(TracePacket { timestamp, track_event, ..Default::default() });
    }

    fn packet(&mut self, mut packet: TracePacket) {
        /// The key of `Trace.packet`: field 1, length-delimited.
        const PACKET: u8 = 1 << 3 | 2;
        if self.failed.is_some() {
            return;
        }
        packet.trusted_packet_sequence_id = Some(SEQUENCE);
        if std::mem::take(&mut self.first) {
            packet.sequence_flags = Some(SEQ_INCREMENTAL_STATE_CLEARED);
        }
        self.buffer.clear();
        self.buffer.push(PACKET);
        let encoded = packet.encode_length_delimited(&mut self.buffer).map_err(io::Error::other);
        if let Err(error) = encoded.and_then(|()| self.out.write_all(&self.buffer)) {
            self.failed = Some(error);
        }
    }
}

/// Slices that overlap, each in the lowest lane that is free.
#[derive(Clone, Debug)]
pub(super) struct Lanes<K> {
    open: Vec<Option<K>>,
}

impl<K> Default for Lanes<K> {
    fn default() -> Self {
        Self { open: Vec::new() }
    }
}

impl<K: PartialEq> Lanes<K> {
    /// The lane for one more; `None`: all are taken, or it is open already.
    pub fn open(&mut self, key: K) -> Option<u8> {
        if self.open.iter().flatten().any(|open| *open == key) {
            return None;
        }
        let lane = self.open.iter().position(Option::is_none).unwrap_or(self.open.len());
        let number = u8::try_from(lane).ok().filter(|lane| *lane < Track::LANES)?;
        if lane == self.open.len() {
            self.open.push(None);
        }
        self.open[lane] = Some(key);
        Some(number)
    }

    /// Frees the lanes of those that satisfy `ends`.
    pub fn close(&mut self, ends: impl Fn(&K) -> bool) -> Vec<u8> {
        let mut closed = Vec::new();
        for (lane, open) in (0..).zip(&mut self.open) {
            if open.as_ref().is_some_and(&ends) {
                *open = None;
                closed.push(lane);
            }
        }
        closed
    }
}
