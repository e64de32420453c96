//! The bytes of the files: little-endian, checksummed, each length checked before it is believed.
//!
//! `log` is a header and batches. The header of a batch says where it is and how much of the file was synced when it
//! was written: what fails its check below such a length is damage, what fails it behind is a tail that a crash tore.
//! Nothing here touches a disk, and no input makes it panic or allocate more than the input has.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState, SnapshotMetadata};

use super::Identity;
use crate::{limits, message::GroupId, topology::NodeId};

const LOG_MAGIC: &[u8; 8] = b"oxg-log\n";
const SNAPSHOT_MAGIC: &[u8; 8] = b"oxg-snp\n";
const BATCH_MAGIC: u32 = 0x4742_584f;
const VERSION: u16 = 1;
/// Magic, offset, synced length, payload length, payload checksum, header checksum.
pub(super) const BATCH_HEADER: usize = 4 + 8 + 8 + 4 + 4 + 4;
/// Bytes of the `synced` file.
pub(super) const MARKER: usize = 8 + 8 + 4;

/// Reads from the front of a slice; `None` as soon as something is missing.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// A length and as many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }
}

fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    // Entries and metadata are far below 4 GB: `encode_batch` and the caller's limits see to it.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_checksum(out: &mut Vec<u8>) {
    let sum = crc32fast::hash(out);
    out.extend_from_slice(&sum.to_le_bytes());
}

/// Magic and version of a file.
fn file_head(reader: &mut Reader<'_>, magic: &[u8; 8], file: &str) -> Result<(), String> {
    match (reader.take(magic.len()), reader.u16()) {
        (Some(found), _) if found != magic => Err(format!("the {file} is no file of this kind")),
        (Some(_), Some(VERSION)) => Ok(()),
        (Some(_), Some(other)) => Err(format!(
            "the {file} has format {other}, which this version does not know"
        )),
        _ => Err(format!("the {file} is cut off")),
    }
}

/// What the head of a log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogHead {
    pub identity: Identity,
    /// Counts the rewritings of the log, so that a marker of an earlier one is not taken for this one's.
    pub generation: u64,
    /// Index and term of the entry before the first one.
    pub base: (u64, u64),
}

impl LogHead {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = LOG_MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.identity.group.0.to_le_bytes());
        out.extend_from_slice(&self.identity.raft_id.to_le_bytes());
        out.extend_from_slice(&self.base.0.to_le_bytes());
        out.extend_from_slice(&self.base.1.to_le_bytes());
        put_counted(&mut out, self.identity.node.as_str().as_bytes());
        put_checksum(&mut out);
        out
    }

    /// The head and its length.
    pub fn decode(bytes: &[u8]) -> Result<(LogHead, usize), String> {
        let mut reader = Reader(bytes);
        file_head(&mut reader, LOG_MAGIC, "log")?;
        let mut fields = || {
            let generation = reader.u64()?;
            let group = GroupId(reader.u128()?);
            let raft_id = reader.u64()?;
            let base = (reader.u64()?, reader.u64()?);
            let node = std::str::from_utf8(reader.counted()?).ok()?;
            if node.len() > limits::NODE_ID_BYTES || raft_id == 0 {
                return None;
            }
            let node = NodeId::new(node);
            let identity = Identity { group, node, raft_id };
            let length = bytes.len() - reader.0.len();
            let head = LogHead {
                identity,
                generation,
                base,
            };
            (reader.u32()? == crc32fast::hash(&bytes[..length])).then_some((head, length + 4))
        };
        fields().ok_or_else(|| "the head of the log fails its checksum".to_owned())
    }
}

/// What one write adds to the log.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub hard_state: Option<HardState>,
    pub entries: Vec<Entry>,
}

/// The bytes of a batch at `offset`, when `synced` bytes before it are known to be on disk.
pub(super) fn encode_batch(
    generation: u64,
    offset: u64,
    synced: u64,
    hard_state: &HardState,
    entries: &[Entry],
) -> Result<Vec<u8>, String> {
    let text = |error: protobuf::ProtobufError| error.to_string();
    let mut out = vec![0; BATCH_HEADER];
    put_counted(&mut out, &hard_state.write_to_bytes().map_err(text)?);
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        put_counted(&mut out, &entry.write_to_bytes().map_err(text)?);
    }
    let payload = &out[BATCH_HEADER..];
    let length = u32::try_from(payload.len()).map_err(|_| "a batch of more than 4 GB".to_owned())?;
    let mut head = Vec::with_capacity(BATCH_HEADER);
    head.extend_from_slice(&BATCH_MAGIC.to_le_bytes());
    head.extend_from_slice(&offset.to_le_bytes());
    head.extend_from_slice(&synced.to_le_bytes());
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let sum = head_checksum(generation, &head);
    head.extend_from_slice(&sum.to_le_bytes());
    out[..BATCH_HEADER].copy_from_slice(&head);
    Ok(out)
}

/// A batch of another rewriting of the log must not pass for one of this.
fn head_checksum(generation: u64, head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(head);
    hasher.finalize()
}

struct BatchHead {
    synced: u64,
    length: usize,
    sum: u32,
}

fn batch_head(generation: u64, bytes: &[u8], offset: usize) -> Option<BatchHead> {
    let head = bytes.get(offset..)?.get(..BATCH_HEADER)?;
    let mut reader = Reader(head);
    if reader.u32()? != BATCH_MAGIC || reader.u64()? != offset as u64 {
        return None;
    }
    let found = BatchHead {
        synced: reader.u64()?,
        length: usize::try_from(reader.u32()?).ok()?,
        sum: reader.u32()?,
    };
    (reader.u32()? == head_checksum(generation, &head[..BATCH_HEADER - 4])).then_some(found)
}

fn payload(bytes: &[u8]) -> Option<Batch> {
    let mut reader = Reader(bytes);
    let hard_state = reader.counted()?;
    let hard_state = match hard_state.is_empty() {
        true => None,
        false => Some(HardState::parse_from_bytes(hard_state).ok()?),
    };
    let count = reader.u32()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(Entry::parse_from_bytes(reader.counted()?).ok()?);
    }
    reader.0.is_empty().then_some(Batch { hard_state, entries })
}

/// What stands at a place of the log.
pub(super) enum Found {
    /// A batch, and where the next one begins.
    Batch(Batch, usize),
    /// The end.
    End,
    /// Something else.
    Bad,
}

pub(super) fn batch_at(generation: u64, bytes: &[u8], offset: usize) -> Found {
    if offset == bytes.len() {
        return Found::End;
    }
    let batch = || {
        let head = batch_head(generation, bytes, offset)?;
        let start = offset + BATCH_HEADER;
        let end = start.checked_add(head.length)?;
        let body = bytes.get(start..end)?;
        (crc32fast::hash(body) == head.sum && head.synced <= offset as u64).then_some(())?;
        Some(Found::Batch(payload(body)?, end))
    };
    batch().unwrap_or(Found::Bad)
}

/// Whether a batch behind `offset` says that more than `offset` bytes had been synced.
pub(super) fn synced_beyond(generation: u64, bytes: &[u8], offset: usize) -> bool {
    let magic = BATCH_MAGIC.to_le_bytes();
    (offset + 1..bytes.len().saturating_sub(BATCH_HEADER - 1))
        .filter(|&at| bytes[at..].starts_with(&magic))
        .any(|at| batch_head(generation, bytes, at).is_some_and(|head| head.synced > offset as u64))
}

/// How much of which log is known to be synced.
pub(super) fn encode_marker(generation: u64, synced: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(MARKER);
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(&synced.to_le_bytes());
    put_checksum(&mut out);
    out
}

/// Generation and length; `None` if it is not whole, which is no harm: it is never synced.
pub(super) fn decode_marker(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut reader = Reader(bytes.get(..MARKER)?);
    let found = (reader.u64()?, reader.u64()?);
    (reader.u32()? == crc32fast::hash(&bytes[..MARKER - 4])).then_some(found)
}

/// The head of a snapshot file; the data follows it.
pub(super) fn encode_snapshot_head(
    group: GroupId,
    metadata: &SnapshotMetadata,
    data: &[u8],
) -> Result<Vec<u8>, String> {
    let mut out = SNAPSHOT_MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&group.0.to_le_bytes());
    put_counted(&mut out, &metadata.write_to_bytes().map_err(|e| e.to_string())?);
    out.extend_from_slice(&(data.len() as u64).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    put_checksum(&mut out);
    Ok(out)
}

/// Metadata and data of a snapshot file of this group.
pub(super) fn decode_snapshot(group: GroupId, bytes: Vec<u8>) -> Result<(SnapshotMetadata, Bytes), String> {
    let mut reader = Reader(&bytes);
    file_head(&mut reader, SNAPSHOT_MAGIC, "snapshot")?;
    let mut fields = || {
        let found = GroupId(reader.u128()?);
        let metadata = reader.counted()?;
        let (length, sum) = (reader.u64()?, reader.u32()?);
        let head = bytes.len() - reader.0.len();
        (reader.u32()? == crc32fast::hash(&bytes[..head])).then_some(())?;
        let data = reader.0;
        (data.len() as u64 == length && crc32fast::hash(data) == sum).then_some(())?;
        Some((found, SnapshotMetadata::parse_from_bytes(metadata).ok()?, head + 4))
    };
    let (found, metadata, start) = fields().ok_or("the snapshot fails its checksum")?;
    if found != group {
        return Err(format!("the snapshot is of group {found}, the log of group {group}"));
    }
    Ok((metadata, Bytes::from(bytes).slice(start..)))
}
