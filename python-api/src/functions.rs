//! The function table of a plan, and how it travels to other shards.

use std::sync::Arc;

use oxigears_coordinator::plan::{FnId, Plan, Reader};
use pyo3::{
    ffi,
    prelude::*,
    types::{PyBytes, PyList},
};

use crate::{
    codec::Kept,
    context::{self, Place},
    errors, gil,
    runtime::runtime,
    session::Session,
};

/// Functions (and start values) that a plan names by number, with the session whose globals they use.
#[derive(Clone)]
pub struct Functions(Arc<Table>);

struct Table {
    objects: Vec<Py<PyAny>>,
    session: Arc<Session>,
    /// Where results stay as objects, for code that gets them as they are.
    kept: Option<Arc<Kept>>,
}

/// An execution that Python code asked for.
#[derive(Debug)]
pub struct RunRequest {
    /// Reader and operations.
    pub plan: Plan,
    /// Its functions, as they are on this shard.
    pub functions: Functions,
    /// The session it belongs to.
    pub session: Arc<Session>,
    /// Asked for by running code, not by a script body.
    pub nested: bool,
}

impl Functions {
    pub(crate) fn new(objects: Vec<Py<PyAny>>, session: Arc<Session>) -> Functions {
        session.has_functions();
        Functions(Arc::new(Table {
            objects,
            session,
            kept: None,
        }))
    }

    /// The same; results of this shard stay there as objects. Called before anybody else has the table.
    pub(crate) fn keeping(self, kept: Arc<Kept>) -> Functions {
        match Arc::try_unwrap(self.0) {
            Ok(table) => Functions(Arc::new(Table {
                kept: Some(kept),
                ..table
            })),
            Err(shared) => Functions(shared),
        }
    }

    /// Where results stay as objects.
    pub(crate) fn kept(&self) -> Option<&Arc<Kept>> {
        self.0.kept.as_ref()
    }

    /// The session of the functions.
    pub fn session(&self) -> &Arc<Session> {
        &self.0.session
    }

    /// A borrowed pointer that lives as long as the table.
    pub(crate) fn get(&self, function: FnId) -> Result<*mut ffi::PyObject, String> {
        match self.0.objects.get(function as usize) {
            Some(object) => Ok(object.as_ptr()),
            None => Err(format!(
                "the plan names function {function}, which its table does not have"
            )),
        }
    }
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Functions({} of session {})",
            self.0.objects.len(),
            self.0.session.id()
        )
    }
}

/// Start of the pickled table: magic, format, Python's major and minor version, the session's nonce.
const MAGIC: [u8; 3] = *b"OGF";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 3 + 8;

fn header(py: Python<'_>, nonce: u64) -> Vec<u8> {
    let version = py.version_info();
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[FORMAT, version.major, version.minor]);
    out.extend_from_slice(&nonce.to_le_bytes());
    out
}

/// Pickles the table for other shards. The error names the function that can not travel.
pub(crate) fn dump_functions(py: Python<'_>, objects: &[Py<PyAny>], session: &Session) -> PyResult<Vec<u8>> {
    let list = PyList::new(py, objects)?;
    let pickled = runtime().dumps_functions.bind(py).call1((list, session.globals()))?;
    let mut code = header(py, session.nonce());
    code.extend_from_slice(pickled.cast::<PyBytes>()?.as_bytes());
    Ok(code)
}

/// Loads the functions of a plan that came from another shard. They join the globals of the plan's session if that
/// is known on this shard; the result keeps the session alive.
pub fn load_functions(plan: &Plan) -> Result<Functions, String> {
    gil::attach(|py| {
        let expected = header(py, 0);
        let Some((head, pickled)) = plan.code.split_at_checked(HEADER_BYTES) else {
            return Err("the plan's functions are cut off".to_owned());
        };
        if head[..MAGIC.len() + 1] != expected[..MAGIC.len() + 1] {
            return Err("the plan's functions have an unknown format".to_owned());
        }
        if head[4..6] != expected[4..6] {
            let (theirs, ours) = (&head[4..6], &expected[4..6]);
            return Err(format!(
                "the plan's functions come from Python {}.{}, this shard runs {}.{}",
                theirs[0], theirs[1], ours[0], ours[1]
            ));
        }
        let nonce = u64::from_le_bytes(head[6..HEADER_BYTES].try_into().unwrap_or_default());
        let session = Session::find_or_create(&plan.session, nonce)?;
        let _visit = context::visit(Place::Step, &session);
        let objects = runtime()
            .loads
            .bind(py)
            .call1((PyBytes::new(py, pickled), session.globals()))
            .and_then(|list| {
                list.cast::<PyList>()?
                    .iter()
                    .map(|o| Ok(o.unbind()))
                    .collect::<PyResult<Vec<_>>>()
            })
            .map_err(|e| {
                format!(
                    "the plan's functions can not be loaded on this shard: {}",
                    errors::error_text(py, e)
                )
            })?;
        if objects.len() != plan.function_names.len() {
            return Err("the plan's functions and their names differ in number".to_owned());
        }
        Ok(Functions::new(objects, session.clone()))
    })
}

/// Asks a pattern generator for this shard's pattern; other readers stay as they are.
pub fn resolve_reader(plan: &Plan, functions: &Functions) -> Result<Reader, String> {
    let Reader::KeysOnly {
        generator: Some(generator),
        count,
        ..
    } = &plan.reader
    else {
        return Ok(plan.reader.clone());
    };
    let function = functions.get(*generator)?;
    gil::attach(|py| {
        let _visit = context::visit(Place::Step, functions.session());
        let resolve = || -> PyResult<(Vec<u8>, bool)> {
            // SAFETY: the table keeps the function alive; the GIL is held.
            let function = unsafe { Bound::from_borrowed_ptr(py, function) };
            let (pattern, no_scan) = function.call0()?.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            Ok((crate::native::argument(&pattern)?, no_scan.is_truthy()?))
        };
        let (pattern, no_scan) = resolve().map_err(|e| errors::error_text(py, e))?;
        Ok(Reader::KeysOnly {
            pattern,
            no_scan,
            count: count.clone(),
            generator: None,
        })
    })
}
