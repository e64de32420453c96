//! One open key, for reading.

use std::{
    marker::PhantomData,
    ops::ControlFlow,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicBool, Ordering},
};

use redis_module::raw;

use super::{
    ffi::{OwnedString, api, bytes_at},
    filter,
    lock::{ServerLock, detached},
    notify,
    version::at_least,
};

/// Readers leave no trace: neither access times nor hit counters nor events of missed keys. Servers before 7.2 do not know
/// the flags for the last two, but count and tell of nothing when a key is opened for writing. On a replica that is not
/// read-only that would remove a key whose time is over for the replica alone.
pub(super) fn quiet() -> u32 {
    let read = raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
    let more = match at_least(7, 2) {
        true => raw::REDISMODULE_OPEN_KEY_NONOTIFY | raw::REDISMODULE_OPEN_KEY_NOSTATS,
        false if IS_MASTER.load(Ordering::Relaxed) => raw::REDISMODULE_WRITE,
        false => 0,
    };
    read | more
}

static IS_MASTER: AtomicBool = AtomicBool::new(false);

/// The server is a master or a replica from now on.
pub fn role_is(master: bool) {
    IS_MASTER.store(master, Ordering::Relaxed);
}

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Empty,
    String,
    List,
    Hash,
    Set,
    SortedSet,
    Module,
    Stream,
    Unknown,
}

/// Id of a stream entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct StreamId {
    /// Milliseconds.
    pub ms: u64,
    /// Sequence number.
    pub seq: u64,
}

impl StreamId {
    /// Reads `ms` and `ms-seq`, as XREAD does.
    pub fn parse(text: &str) -> Option<StreamId> {
        let number = |digits: &str| -> Option<u64> {
            digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse().ok())
                .flatten()
        };
        let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
        Some(StreamId {
            ms: number(ms)?,
            seq: number(seq)?,
        })
    }

    /// The id before this one; `None` before the least.
    pub fn previous(self) -> Option<StreamId> {
        match self.seq.checked_sub(1) {
            Some(seq) => Some(StreamId { ms: self.ms, seq }),
            None => Some(StreamId {
                ms: self.ms.checked_sub(1)?,
                seq: u64::MAX,
            }),
        }
    }

    /// The id behind this one; `None` behind the greatest.
    pub fn next(self) -> Option<StreamId> {
        match self.seq.checked_add(1) {
            Some(seq) => Some(StreamId { ms: self.ms, seq }),
            None => Some(StreamId {
                ms: self.ms.checked_add(1)?,
                seq: 0,
            }),
        }
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The server embeds strings up to this length, or stores them as integers.
const EMBEDDED_BYTES: usize = 44;

/// The reply of GET or MGET.
struct StringReply(NonNull<raw::RedisModuleCallReply>);

impl StringReply {
    /// Takes a reply; `None` unless it is a string.
    ///
    /// # Safety
    /// The reply is null or the caller's.
    unsafe fn adopt(reply: *mut raw::RedisModuleCallReply) -> Option<StringReply> {
        let reply = StringReply(NonNull::new(reply)?);
        // SAFETY: the reply is alive.
        let kind = unsafe { api!(RedisModule_CallReplyType)(reply.0.as_ptr()) };
        (kind == raw::REDISMODULE_REPLY_STRING as i32).then_some(reply)
    }

    fn bytes(&self) -> &[u8] {
        let mut len = 0;
        // SAFETY: the reply is a string; pointer and length are its own.
        unsafe { bytes_at(api!(RedisModule_CallReplyStringPtr)(self.0.as_ptr(), &mut len), len) }
    }
}

impl Drop for StringReply {
    fn drop(&mut self) {
        // SAFETY: the reply is ours.
        unsafe { api!(RedisModule_FreeCallReply)(self.0.as_ptr()) }
    }
}

/// Gives `f` the bytes of a string of database 0, by its name; `None` if there is no such key, or it is no string.
pub fn with_string_of<T>(_guard: &ServerLock, name: &[u8], f: impl FnOnce(&[u8]) -> T) -> Option<T> {
    // No hook has a part in it.
    let _unseen = filter::unseen();
    // SAFETY: the lock is held and the context alive; "b" takes a pointer and a length.
    let reply = notify::silently(|| unsafe {
        let reply = api!(RedisModule_Call)(
            detached(),
            c"GET".as_ptr(),
            c"b".as_ptr(),
            name.as_ptr().cast::<std::ffi::c_char>(),
            name.len(),
        );
        StringReply::adopt(reply)
    })?;
    Some(f(reply.bytes()))
}

/// Gives `f` number and bytes of the strings of database 0 with these names, in one command; nothing for others. Not in a
/// cluster, where one command takes keys of one slot only.
pub fn with_strings_of(_guard: &ServerLock, names: &[&[u8]], mut f: impl FnMut(usize, &[u8])) {
    let strings: Vec<OwnedString> = names.iter().map(|name| OwnedString::new(name)).collect();
    let mut pointers: Vec<_> = strings.iter().map(OwnedString::as_ptr).collect();
    let _unseen = filter::unseen();
    // SAFETY: the lock is held and the context alive; "v" takes an array of strings, which are alive, and its length.
    let reply = notify::silently(|| unsafe {
        api!(RedisModule_Call)(
            detached(),
            c"MGET".as_ptr(),
            c"v".as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
        )
    });
    // Owned, whatever it is.
    let Some(all) = NonNull::new(reply).map(StringReply) else {
        return;
    };
    for at in 0..names.len() {
        // SAFETY: the reply is alive; an element that is none is null. Elements belong to the reply.
        let text = unsafe {
            let element = NonNull::new(api!(RedisModule_CallReplyArrayElement)(all.0.as_ptr(), at));
            element.and_then(|element| {
                let kind = api!(RedisModule_CallReplyType)(element.as_ptr());
                let mut len = 0;
                (kind == raw::REDISMODULE_REPLY_STRING as i32)
                    .then(|| bytes_at(api!(RedisModule_CallReplyStringPtr)(element.as_ptr(), &mut len), len))
            })
        };
        if let Some(text) = text {
            f(at, text);
        }
    }
}

/// An open key; lives no longer than the lock is held.
pub struct Key<'a> {
    key: *mut raw::RedisModuleKey,
    /// Lives as long as the open key.
    _name: Option<OwnedString>,
    /// Opened by us, so closed by us.
    ours: bool,
    _lock: PhantomData<&'a ServerLock>,
}

impl<'a> Key<'a> {
    /// Opens a key of database 0; `None` if there is none (an expired key is none).
    pub fn open(guard: &'a ServerLock, name: &[u8]) -> Option<Key<'a>> {
        let name = OwnedString::new(name);
        // SAFETY: the lock is ours; the name outlives the open key.
        let mut key = unsafe { Key::open_in(guard.ctx(), name.as_ptr()) }?;
        key._name = Some(name);
        Some(key)
    }

    /// Opens a key in the database of a context; `None` if there is none.
    ///
    /// # Safety
    /// Context and name outlive the key; the lock is held.
    pub(super) unsafe fn open_in(ctx: *mut raw::RedisModuleCtx, name: *mut raw::RedisModuleString) -> Option<Key<'a>> {
        // SAFETY: the caller says so.
        let key = notify::silently(|| unsafe { api!(RedisModule_OpenKey)(ctx, name, quiet() as i32) });
        // Ours to close; the name is the caller's.
        let key = (!key.is_null()).then_some(Key {
            key,
            _name: None,
            ours: true,
            _lock: PhantomData,
        });
        // One that is opened for writing need not be there.
        key.filter(|key| key.kind() != Kind::Empty)
    }

    /// A key that the server has opened; `None` for null.
    ///
    /// # Safety
    /// `key` is null or open during `'a`, under the lock.
    pub(super) unsafe fn borrowed(key: *mut raw::RedisModuleKey) -> Option<Key<'a>> {
        (!key.is_null()).then_some(Key {
            key,
            _name: None,
            ours: false,
            _lock: PhantomData,
        })
    }

    pub(super) fn as_ptr(&self) -> *mut raw::RedisModuleKey {
        self.key
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        // SAFETY: the key is open; so for all calls of this type.
        match unsafe { api!(RedisModule_KeyType)(self.key) } as isize {
            raw::REDISMODULE_KEYTYPE_EMPTY => Kind::Empty,
            raw::REDISMODULE_KEYTYPE_STRING => Kind::String,
            raw::REDISMODULE_KEYTYPE_LIST => Kind::List,
            raw::REDISMODULE_KEYTYPE_HASH => Kind::Hash,
            raw::REDISMODULE_KEYTYPE_SET => Kind::Set,
            raw::REDISMODULE_KEYTYPE_ZSET => Kind::SortedSet,
            raw::REDISMODULE_KEYTYPE_MODULE => Kind::Module,
            raw::REDISMODULE_KEYTYPE_STREAM => Kind::Stream,
            _ => Kind::Unknown,
        }
    }

    /// Bytes of a string, elements of a collection.
    pub fn len(&self) -> usize {
        // SAFETY: see `kind`.
        unsafe { api!(RedisModule_ValueLength)(self.key) }
    }

    /// Its time is over, though it has not been deleted yet.
    pub fn is_expired(&self) -> bool {
        // SAFETY: see `kind`.
        unsafe { api!(RedisModule_GetExpire)(self.key) == 0 }
    }

    /// Gives `f` the bytes of a string. Direct access would turn a short or integer string into its plain encoding for
    /// good (a third more memory for counters), so those come by GET, which leaves them as they are.
    pub fn with_string<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        let short = if self.len() <= EMBEDDED_BYTES {
            self.short_string()
        } else {
            None
        };
        match short {
            Some(reply) => f(reply.bytes()),
            None => f(self.string()),
        }
    }

    fn short_string(&self) -> Option<StringReply> {
        // No hook has a part in it.
        let _unseen = filter::unseen();
        // SAFETY: the pointer is filled at load; see `kind`; the name belongs to the open key. The lock is held, and GET
        // takes one string.
        unsafe {
            let name = raw::RedisModule_GetKeyNameFromModuleKey.map(|get| get(self.key))?;
            let reply = api!(RedisModule_Call)(detached(), c"GET".as_ptr(), c"s".as_ptr(), name);
            StringReply::adopt(reply)
        }
    }

    /// The bytes of a string, in place.
    fn string(&self) -> &[u8] {
        let mut len = 0;
        // SAFETY: see `kind`; the server gives pointer and length of the value, unchanged while the lock is held.
        unsafe {
            bytes_at(
                api!(RedisModule_StringDMA)(self.key, &mut len, raw::REDISMODULE_READ as i32),
                len,
            )
        }
    }

    /// Element `index` of a list, counted from the front; `None` beyond the end. In order this is fast.
    pub fn list_element(&self, index: usize) -> Option<Bytes> {
        // SAFETY: see `kind`; the server gives a string that we own.
        let string = unsafe { api!(RedisModule_ListGet)(self.key, index as _) };
        OwnedString::adopt(string).map(Bytes)
    }

    /// Calls `visitor` with member and score of a sorted set, in order of score.
    pub fn sorted_members(&self, mut visitor: impl FnMut(&[u8], f64) -> ControlFlow<()>) {
        let (min, max) = (f64::NEG_INFINITY, f64::INFINITY);
        // SAFETY: see `kind`; the server refuses keys that hold something else.
        let started = unsafe { api!(RedisModule_ZsetFirstInScoreRange)(self.key, min, max, 0, 0) };
        if started != raw::REDISMODULE_OK as i32 {
            return;
        }
        let _stop = Stop(|| {
            // SAFETY: ends the iteration that was begun above.
            unsafe { api!(RedisModule_ZsetRangeStop)(self.key) };
        });
        // SAFETY: see `kind`; all inside the iteration.
        while unsafe { api!(RedisModule_ZsetRangeEndReached)(self.key) } == 0 {
            let mut score = 0.0;
            // SAFETY: as above; the server gives a string that we own.
            let member = OwnedString::adopt(unsafe { api!(RedisModule_ZsetRangeCurrentElement)(self.key, &mut score) });
            let Some(member) = member else { break };
            if visitor(member.bytes(), score).is_break() {
                break;
            }
            // SAFETY: as above.
            unsafe { api!(RedisModule_ZsetRangeNext)(self.key) };
        }
    }

    /// Id of the last entry of a stream; `None` if it has none.
    pub fn last_stream_id(&self) -> Option<StreamId> {
        let _stop = self.start_stream(raw::REDISMODULE_STREAM_ITERATOR_REVERSE, None, None)?;
        self.next_stream_id().map(|(id, _)| id)
    }

    /// Calls `visitor` with the entries of a stream whose id is greater than `after` and at most `until`, in order.
    pub fn stream_entries(
        &self,
        after: Option<StreamId>,
        until: Option<StreamId>,
        mut visitor: impl FnMut(StreamId, &mut Fields<'_>) -> ControlFlow<()>,
    ) {
        // Not the server's "exclusive" flag: that leaves out both ends.
        let from = match after.map(StreamId::next) {
            Some(None) => return,
            Some(next) => next,
            None => None,
        };
        let Some(_stop) = self.start_stream(0, from, until) else {
            return;
        };
        while let Some((id, count)) = self.next_stream_id() {
            let mut fields = Fields {
                key: self.key,
                count,
                _key: PhantomData,
            };
            let flow = visitor(id, &mut fields);
            // The iteration goes on behind the last field.
            fields.for_each(drop);
            if flow.is_break() {
                break;
            }
        }
    }

    /// Begins an iteration that ends when the result is dropped. `None` if the server refuses.
    fn start_stream(
        &self,
        flags: u32,
        from: Option<StreamId>,
        until: Option<StreamId>,
    ) -> Option<Stop<impl FnMut() + use<>>> {
        let raw_id = |id: StreamId| raw::RedisModuleStreamID { ms: id.ms, seq: id.seq };
        let (mut from, mut until) = (from.map(raw_id), until.map(raw_id));
        let pointer = |id: &mut Option<raw::RedisModuleStreamID>| id.as_mut().map_or(null_mut(), |id| &raw mut *id);
        let (from, until) = (pointer(&mut from), pointer(&mut until));
        let key = self.key;
        // SAFETY: see `kind`; the ids are null or alive during the call.
        let started = unsafe { api!(RedisModule_StreamIteratorStart)(key, flags as i32, from, until) };
        (started == raw::REDISMODULE_OK as i32).then_some(Stop(move || {
            // SAFETY: ends the iteration that was begun above, while the key is still open.
            unsafe { api!(RedisModule_StreamIteratorStop)(key) };
        }))
    }

    /// The next entry of the iteration at hand and the number of its fields.
    fn next_stream_id(&self) -> Option<(StreamId, usize)> {
        let (mut id, mut count) = (raw::RedisModuleStreamID { ms: 0, seq: 0 }, 0);
        // SAFETY: see `kind`; both places are ours.
        let outcome = unsafe { api!(RedisModule_StreamIteratorNextID)(self.key, &mut id, &mut count) };
        let id = StreamId { ms: id.ms, seq: id.seq };
        (outcome == raw::REDISMODULE_OK as i32).then_some((id, count as usize))
    }
}

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if self.ours {
            // SAFETY: we opened it; the name is freed after.
            unsafe { api!(RedisModule_CloseKey)(self.key) }
        }
    }
}

/// Runs at the end of its scope, also when a visitor panics.
struct Stop<F: FnMut()>(F);

impl<F: FnMut()> Drop for Stop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Bytes that the server copied for us.
pub struct Bytes(OwnedString);

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// The fields of a stream entry, read once, in order.
pub struct Fields<'a> {
    key: *mut raw::RedisModuleKey,
    count: usize,
    _key: PhantomData<&'a ()>,
}

impl Iterator for Fields<'_> {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        self.count = self.count.checked_sub(1)?;
        let (mut field, mut value) = (null_mut(), null_mut());
        // SAFETY: the iteration stands at this entry; the server gives strings that we own.
        let outcome = unsafe { api!(RedisModule_StreamIteratorNextField)(self.key, &mut field, &mut value) };
        if outcome != raw::REDISMODULE_OK as i32 {
            self.count = 0;
            return None;
        }
        OwnedString::adopt(field)
            .map(Bytes)
            .zip(OwnedString::adopt(value).map(Bytes))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Fields<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids_have_successors() {
        let id = |ms, seq| StreamId { ms, seq };
        assert_eq!(id(1, 2).next(), Some(id(1, 3)));
        assert_eq!(id(1, u64::MAX).next(), Some(id(2, 0)));
        assert_eq!(id(u64::MAX, u64::MAX).next(), None);
        assert_eq!(id(1, 3).previous(), Some(id(1, 2)));
        assert_eq!(id(2, 0).previous(), Some(id(1, u64::MAX)));
        assert_eq!(id(0, 0).previous(), None);
        assert!(id(1, u64::MAX) < id(2, 0));
        assert_eq!(id(1, 2).to_string(), "1-2");
    }
}
