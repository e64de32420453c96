//! Records of keys to be copied, with event and type filled in: of these there are few, and copying a dict is faster than
//! filling one.

use std::sync::LazyLock;

use hashbrown::HashMap;
use oxigears_coordinator::codec::TYPE_WORDS;
use pyo3::{ffi, prelude::*};

use super::decode::{DecodeError, made, new_text, put};
use crate::{gil::WithGil, obj::Obj, runtime::runtime};

/// Names of events that are kept; the server has some eighty.
const EVENTS: usize = 200;
/// Longer ones are not kept.
const EVENT_BYTES: usize = 64;

type ByType = [Option<Obj>; TYPE_WORDS.len()];

#[derive(Default)]
struct Templates {
    without_event: ByType,
    by_event: HashMap<Box<[u8]>, ByType>,
}

// SAFETY: the objects are touched only with the GIL held, which every use of them has to show.
unsafe impl Send for Templates {}

static TEMPLATES: LazyLock<WithGil<Templates>> = LazyLock::new(WithGil::default);

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

/// A new record with the keys `event`, `key`, `type` and `value`, of which the first and the third have their values.
/// `type_code` is one of the codec's.
///
/// # Safety
/// The GIL is held.
#[inline]
pub(super) unsafe fn key_record(event: Option<&[u8]>, type_code: u8) -> Result<Obj, DecodeError> {
    let type_code = usize::from(type_code);
    // SAFETY: the GIL is held; the template is our own reference, because a copy may run the garbage collector and with
    // it Python code.
    unsafe {
        let py = Python::assume_attached();
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
    use super::*;
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
}
