//! Records of keys to be copied, with event and type filled in: of these there are few, and copying a dict is faster than
//! filling one. Using one again is faster still: most handlers leave their record as it is, and nobody has it afterwards.

use std::sync::LazyLock;

use hashbrown::HashMap;
use oxigears_coordinator::codec::{TYPE_WORDS, TextEvent};
use pyo3::{ffi, prelude::*};

use super::decode::{DecodeError, made, new_text, put};
use crate::{gil::WithGil, obj::Obj, runtime::runtime};

/// Names of events that are kept; the server has some eighty.
const EVENTS: usize = 200;
/// Longer ones are not kept.
const EVENT_BYTES: usize = 64;
/// A spare record keeps so many bytes of event, key and value in memory at most.
const SPARE_BYTES: usize = 4096;

type ByType = [Option<Obj>; TYPE_WORDS.len()];

#[derive(Default)]
struct Templates {
    without_event: ByType,
    by_event: HashMap<Box<[u8]>, ByType>,
}

// SAFETY: the objects are touched only with the GIL held, which every use of them has to show.
unsafe impl Send for Templates {}

static TEMPLATES: LazyLock<WithGil<Templates>> = LazyLock::new(WithGil::default);

/// A record that nobody has any more, with the key and the value that it had.
struct Spare {
    /// Of this event.
    event: Vec<u8>,
    type_code: u8,
    record: Option<Obj>,
}

// SAFETY: as above.
unsafe impl Send for Spare {}

/// One is enough: most records are of the event that the one before was of.
static SPARE: WithGil<Spare> = WithGil::new(Spare {
    event: Vec::new(),
    type_code: 0,
    record: None,
});

/// The record of an event that is handed to functions; may come back.
pub(crate) struct Lent<'a> {
    event: &'a [u8],
    type_code: u8,
    record: Obj,
    version: u64,
}

impl<'a> Lent<'a> {
    /// The record of an event, unless a use of it again would keep much in memory.
    ///
    /// # Safety
    /// The GIL is held; `record` is alive, is what the event was decoded to, and nobody else has it yet.
    #[inline]
    pub(crate) unsafe fn of(record: &Obj, event: &TextEvent<'a>) -> Option<Lent<'a>> {
        let (type_code, value) = event.read?;
        let bytes = event.event.len() + event.key.len() + value.map_or(0, <[u8]>::len);
        if bytes > SPARE_BYTES {
            return None;
        }
        // SAFETY: as for this function.
        unsafe {
            Some(Lent {
                event: event.event,
                type_code,
                version: version(record.as_ptr())?,
                record: Obj::from_borrowed(record.as_ptr()),
            })
        }
    }

    /// The functions have run. If nobody has kept the record, or changed it, the next event gets it.
    #[inline]
    pub(crate) fn give_back(self, py: Python<'_>) {
        // SAFETY: the GIL is held; the record is alive.
        let is_as_new =
            unsafe { ffi::Py_REFCNT(self.record.as_ptr()) == 1 && version(self.record.as_ptr()) == Some(self.version) };
        if !is_as_new {
            return;
        }
        let before = SPARE.with(py, |spare| {
            if *spare.event != *self.event {
                spare.event.clear();
                spare.event.extend_from_slice(self.event);
            }
            spare.type_code = self.type_code;
            spare.record.replace(self.record)
        });
        // Outside.
        drop(before);
    }
}

/// A number that no other dict has had, nor this one before it was changed last; `None` if it is no dict.
///
/// # Safety
/// `value` is alive.
#[inline]
pub(crate) unsafe fn version(value: *mut ffi::PyObject) -> Option<u64> {
    // SAFETY: as for this function; a dict has this layout.
    unsafe { (ffi::PyDict_CheckExact(value) != 0).then(|| (*value.cast::<ffi::PyDictObject>()).ma_version_tag) }
}

impl Templates {
    fn find(&self, event: Option<&[u8]>, type_code: usize) -> Option<&Obj> {
        let by_type = match event {
            None => &self.without_event,
            Some(event) => self.by_event.get(event)?,
        };
        by_type.get(type_code)?.as_ref()
    }

    fn keep(&mut self, event: Option<&[u8]>, type_code: usize, template: Obj) {
        let by_type = match event {
            None => &mut self.without_event,
            Some(event) if event.len() > EVENT_BYTES => return,
            Some(event) if self.by_event.len() >= EVENTS && !self.by_event.contains_key(event) => return,
            Some(event) => self.by_event.entry(event.into()).or_default(),
        };
        by_type[type_code] = Some(template);
    }
}

/// A record of nobody else with the keys `event`, `key`, `type` and `value`, of which the first and the third have their
/// values. `type_code` is one of the codec's.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(super) unsafe fn key_record(event: Option<&[u8]>, type_code: u8) -> Result<Obj, DecodeError> {
    // SAFETY: the GIL is held.
    let py = unsafe { Python::assume_attached() };
    let spare = event.and_then(|event| {
        SPARE.with(py, |spare| {
            let fits = spare.type_code == type_code && *spare.event == *event;
            if fits { spare.record.take() } else { None }
        })
    });
    match spare {
        Some(record) => Ok(record),
        // SAFETY: as for this function.
        None => unsafe { copy(py, event, usize::from(type_code)) },
    }
}

/// # Safety
/// The GIL is held.
unsafe fn copy(py: Python<'_>, event: Option<&[u8]>, type_code: usize) -> Result<Obj, DecodeError> {
    // SAFETY: the GIL is held; the template is our own reference, because a copy may run the garbage collector and with
    // it Python code.
    unsafe {
        let known = TEMPLATES.with(py, |templates| {
            let template = templates.find(event, type_code)?;
            Some(Obj::from_borrowed(template.as_ptr()))
        });
        let template = match known {
            Some(template) => template,
            None => make(py, event, type_code)?,
        };
        made(ffi::PyDict_Copy(template.as_ptr()))
    }
}

/// # Safety
/// The GIL is held.
#[cold]
unsafe fn make(py: Python<'_>, event: Option<&[u8]>, type_code: usize) -> Result<Obj, DecodeError> {
    let runtime = runtime();
    let words = &runtime.words;
    // SAFETY: the GIL is held; the words live as long as the process.
    unsafe {
        let template = made(ffi::PyDict_Copy(runtime.key_record.as_ptr()))?;
        if let Some(event) = event {
            let event = new_text(event).ok_or(DecodeError::Python)?;
            put(&template, words.event.as_ptr(), event.as_ptr())?;
        }
        put(&template, words.kind.as_ptr(), words.types[type_code].as_ptr())?;
        let kept = Obj::from_borrowed(template.as_ptr());
        TEMPLATES.with(py, |templates| templates.keep(event, type_code, kept));
        Ok(template)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::new_text, *};
    use crate::tests::start_interpreter;

    #[test]
    fn records_are_copies_and_names_are_bounded() {
        start_interpreter();
        Python::attach(|py| {
            let text = |event: Option<&[u8]>, type_code| {
                // SAFETY: the GIL is held.
                unsafe {
                    let record = key_record(event, type_code).ok().expect("a record");
                    let record = Bound::from_borrowed_ptr(py, record.as_ptr());
                    let text = record.to_string();
                    record.set_item("value", "changed").expect("a dict");
                    text
                }
            };
            let wanted = format!(
                "{{'event': 'set', 'key': None, 'type': '{}', 'value': None}}",
                TYPE_WORDS[1]
            );
            for _ in 0..2 {
                assert_eq!(text(Some(b"set"), 1), wanted);
                assert_eq!(text(None, 1), wanted.replace("'set'", "None"));
            }
            for number in 0..EVENTS + 10 {
                let event = format!("event{number}");
                assert!(text(Some(event.as_bytes()), 0).contains(&event));
            }
            assert!(TEMPLATES.with(py, |templates| templates.by_event.len()) <= EVENTS);
            assert!(text(Some(&[b'x'; 1000]), 0).contains("xxx"));
        });
    }

    /// A record of this event, filled in, and given back when `work` has had it. Gives its address.
    fn lend(event: &str, value: &str, work: impl FnOnce(&Bound<'_, PyAny>)) -> usize {
        Python::attach(|py| {
            let told = TextEvent {
                event: event.as_bytes(),
                key: b"key",
                read: Some((1, Some(value.as_bytes()))),
            };
            // SAFETY: the GIL is held.
            unsafe {
                let record = key_record(Some(told.event), 1).ok().expect("a record");
                let words = &runtime().words;
                for (word, text) in [(&words.key, "key"), (&words.value, value)] {
                    let text = new_text(text.as_bytes()).expect("a text");
                    assert!(put(&record, word.as_ptr(), text.as_ptr()).is_ok());
                }
                let lent = Lent::of(&record, &told);
                work(&Bound::from_borrowed_ptr(py, record.as_ptr()));
                let address = record.as_ptr() as usize;
                drop(record);
                if let Some(lent) = lent {
                    lent.give_back(py);
                }
                address
            }
        })
    }

    fn has_spare(event: &str) -> bool {
        let is_of = |spare: &mut Spare| spare.record.is_some() && *spare.event == *event.as_bytes();
        Python::attach(|py| SPARE.with(py, is_of))
    }

    #[test]
    fn a_record_is_used_again_if_nobody_has_kept_or_changed_it() {
        start_interpreter();
        let shown = |wanted: &'static str| move |record: &Bound<'_, PyAny>| assert_eq!(record.to_string(), wanted);
        // Other tests have the GIL in between, if at all, where Python code runs.
        Python::attach(|_| {
            let first = lend("set", "one", |_| ());
            let again = lend(
                "set",
                "two",
                shown("{'event': 'set', 'key': 'key', 'type': 'string', 'value': 'two'}"),
            );
            assert_eq!(first, again);
            // Of another event.
            lend(
                "append",
                "three",
                shown("{'event': 'append', 'key': 'key', 'type': 'string', 'value': 'three'}"),
            );
            assert!(has_spare("append"));
        });
        // Kept.
        let mut kept = None;
        lend("append", "four", |record| kept = Some(record.clone().unbind()));
        assert!(!has_spare("append"));
        lend("append", "five", |_| ());
        Python::attach(|py| {
            shown("{'event': 'append', 'key': 'key', 'type': 'string', 'value': 'four'}")(kept.take().unwrap().bind(py))
        });
        // Changed.
        for code in ["x['more'] = 1", "x['event'] = 'other'", "del x['value']", "x.clear()"] {
            lend("append", "six", |record| {
                let scope = pyo3::types::PyDict::new(record.py());
                scope.set_item("x", record).unwrap();
                let code = std::ffi::CString::new(code).unwrap();
                record.py().run(&code, Some(&scope), None).unwrap();
            });
            assert!(!has_spare("append"), "{code}");
            lend(
                "append",
                "seven",
                shown("{'event': 'append', 'key': 'key', 'type': 'string', 'value': 'seven'}"),
            );
        }
        // Much.
        let _ = lend("append", "eight", |_| ());
        lend("append", &"x".repeat(SPARE_BYTES), |_| ());
        assert!(!has_spare("append"));
    }
}
