//! Our part of INFO.

use std::sync::OnceLock;

use redis_module::raw;

use super::{
    ffi::{api, c_string, guarded},
    lock::ServerLock,
};

/// Writes sections and fields. The server puts the module's name before each name.
pub struct InfoWriter {
    ctx: *mut raw::RedisModuleInfoCtx,
}

impl InfoWriter {
    /// Begins a section; false if the client did not ask for it, then its fields need not be made.
    pub fn section(&mut self, name: &str) -> bool {
        let name = c_string(name);
        // SAFETY: the context is alive during the callback; so for all calls of this type.
        unsafe { api!(RedisModule_InfoAddSection)(self.ctx, name.as_ptr()) == raw::REDISMODULE_OK as i32 }
    }

    /// A text field; line ends become spaces.
    pub fn field_str(&mut self, name: &str, value: &str) {
        let (name, value) = (c_string(name), c_string(&value.replace(['\r', '\n'], " ")));
        // SAFETY: see `section`; both are C strings that the server copies.
        unsafe { api!(RedisModule_InfoAddFieldCString)(self.ctx, name.as_ptr(), value.as_ptr()) };
    }

    /// An unsigned number.
    pub fn field_u64(&mut self, name: &str, value: u64) {
        let name = c_string(name);
        // SAFETY: see `section`.
        unsafe { api!(RedisModule_InfoAddFieldULongLong)(self.ctx, name.as_ptr(), value) };
    }

    /// A field that holds `fields`, as `name:a=1,b=2`.
    pub fn dict(&mut self, name: &str, fields: &[(&str, String)]) {
        let name = c_string(name);
        // SAFETY: see `section`; the dict is ended below.
        unsafe { api!(RedisModule_InfoBeginDictField)(self.ctx, name.as_ptr()) };
        for (name, value) in fields {
            self.field_str(name, value);
        }
        // SAFETY: see `section`.
        unsafe { api!(RedisModule_InfoEndDictField)(self.ctx) };
    }
}

type Writer = fn(&mut InfoWriter);

static WRITER: OnceLock<Writer> = OnceLock::new();

/// Calls `writer` whenever INFO wants our sections. Once, at load.
pub fn register(guard: &ServerLock, writer: Writer) -> Result<(), String> {
    if WRITER.set(writer).is_err() {
        return Err("the INFO sections are registered already".into());
    }
    // SAFETY: the context names this module.
    let outcome = unsafe { api!(RedisModule_RegisterInfoFunc)(guard.ctx(), Some(write)) };
    if outcome == raw::REDISMODULE_OK as i32 {
        Ok(())
    } else {
        Err("the server refused the INFO sections".into())
    }
}

extern "C" fn write(ctx: *mut raw::RedisModuleInfoCtx, for_crash_report: i32) {
    // The report of a crash must not meet a lock that the crashed thread holds.
    if for_crash_report != 0 {
        return;
    }
    guarded("INFO", || {
        if let Some(writer) = WRITER.get() {
            writer(&mut InfoWriter { ctx });
        }
    });
}
