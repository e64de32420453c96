//! Registrations and sessions as clients see them: in replies, in INFO, and as the text that clients evaluate.

use std::sync::Arc;

use hashbrown::HashMap;
use oxigears_coordinator::registry::{EventSource, FailurePolicy, RegisterMode, Registration, Schedule, Session};

use super::{
    active::{Active, ActiveSession},
    limits,
    stats::Counts,
    streams,
};
use crate::redis::reply::ReplyWriter;

/// A session with what this shard knows of it.
pub struct SessionView {
    /// What the registry says.
    pub is: Arc<Session>,
    /// Those who may run code of it.
    pub holders: usize,
    /// It was replaced, or lost its last registration.
    pub dead: bool,
}

impl SessionView {
    /// A session that is there.
    pub fn linked(session: &Arc<ActiveSession>) -> SessionView {
        SessionView {
            is: session.get(),
            // The table's own reference is no holder.
            holders: Arc::strong_count(session) - 1,
            dead: false,
        }
    }

    /// A session that is gone; `session` is a reference made for this.
    pub fn dead(session: &Arc<ActiveSession>) -> SessionView {
        SessionView {
            is: session.get(),
            holders: Arc::strong_count(session) - 1,
            dead: true,
        }
    }

    /// `primary` or `None`.
    pub fn link(&self) -> &'static str {
        if self.dead { "None" } else { "primary" }
    }

    /// The text PD: a literal of Python.
    pub fn literal(&self) -> String {
        let all = &self.is.registrations;
        let (named, more) = match all.len() {
            n if n <= limits::IDS_IN_TEXT => (n, None),
            _ => (limits::IDS_IN_CUT_TEXT, Some("...")),
        };
        let named = all[..named].iter().map(|id| &**id);
        let ids: Vec<String> = named.chain(more).map(quoted).collect();
        let dependencies: Vec<String> = self
            .is
            .requirements
            .iter()
            .map(|name| format!("{{'name': {}, 'basePath': '', 'wheels': []}}", quoted(name)))
            .collect();
        let (name, description) = (&self.is.name, self.is.description.as_deref().unwrap_or("null"));
        format!(
            "{{'sessionName': {name}, 'sessionDescription': {description}, 'refCount': {count}, 'linkedTo': '{link}', \
             'dead': {dead}, 'isInstallationNeeded': 0, 'registrationsList': [{ids}], 'depsList': [{dependencies}], \
             'sessionId': {name}}}",
            name = quoted(name),
            description = quoted(description),
            count = self.holders,
            link = self.link(),
            dead = if self.dead { "True" } else { "False" },
            ids = ids.join(", "),
            dependencies = dependencies.join(", "),
        )
    }
}

/// The texts of the sessions of one listing, each made once.
#[derive(Default)]
pub struct SessionTexts(HashMap<u64, String>);

impl SessionTexts {
    /// The text of a registration's session.
    pub fn of(&mut self, active: &Active) -> &str {
        let number = active.session.get().sequence;
        self.0
            .entry(number)
            .or_insert_with(|| SessionView::linked(&active.session).literal())
    }
}

/// A string literal of Python, all on one line.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str("\\'"),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            // Line ends for whoever splits lines as Unicode says.
            '\u{85}' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// The word of a mode.
pub fn mode(mode: RegisterMode) -> &'static str {
    match mode {
        RegisterMode::Sync => "sync",
        RegisterMode::AsyncLocal => "async_local",
        RegisterMode::Async => "async",
    }
}

fn policy(policy: FailurePolicy) -> &'static str {
    match policy {
        FailurePolicy::Continue => "continue",
        FailurePolicy::Abort => "abort",
        FailurePolicy::Retry => "retry",
    }
}

fn is_stream(registration: &Registration) -> bool {
    matches!(registration.source, EventSource::Stream { .. })
}

fn status(registration: &Registration) -> &'static str {
    let by_registry = if registration.paused { "PAUSED" } else { "OK" };
    streams::status(&registration.id).unwrap_or(by_registry)
}

/// Writes a registration as a flat map.
pub fn write_registration(reply: &mut ReplyWriter, active: &Active, texts: Option<&mut SessionTexts>) {
    let registration = &active.registration;
    reply.array(if texts.is_some() { 12 } else { 10 });
    reply.named_bulk("id", &registration.id);
    reply.named_bulk("reader", registration.source.reader());
    reply.text("desc");
    reply.bulk_or_null(registration.description.as_deref());
    reply.text("RegistrationData");
    write_data(reply, registration, &active.core.stats.counts());
    if let Some(texts) = texts {
        reply.named_bulk("PD", texts.of(active));
    }
    reply.named_bulk("ExecutionThreadPool", "DefaultPool");
}

fn write_data(reply: &mut ReplyWriter, registration: &Registration, counts: &Counts) {
    let stream = is_stream(registration);
    let has_status = registration.source.is_pausable();
    reply.array(20 + if stream { 4 } else { 0 } + if has_status { 2 } else { 0 });
    reply.named_bulk("mode", mode(registration.mode));
    for (name, value) in [
        ("numTriggered", counts.triggered),
        ("numSuccess", counts.success),
        ("numFailures", counts.failures),
        ("numAborted", counts.aborted),
        ("lastRunDurationMS", counts.last_ms()),
        ("totalRunDurationMS", counts.total_ms()),
    ] {
        reply.named_int(name, int(value));
    }
    reply.text("avgRunDurationMS");
    reply.double(counts.average_ms());
    if stream {
        reply.named_int("lastEstimatedLagMS", int(counts.last_lag_ms));
        reply.text("avgEstimatedLagMS");
        reply.double(counts.average_lag_ms());
    }
    reply.text("lastError");
    reply.bulk_or_null(counts.last_error.as_deref());
    reply.text("args");
    write_args(reply, &registration.source);
    if has_status {
        reply.named_bulk("status", status(registration));
    }
}

fn write_args(reply: &mut ReplyWriter, source: &EventSource) {
    match source {
        EventSource::Command { trigger, inorder } => {
            reply.array(4);
            reply.text("trigger");
            reply.bulk(trigger);
            reply.named_int("inorder", i64::from(*inorder));
        }
        EventSource::Keys {
            prefix,
            event_types,
            key_types,
            commands,
            ..
        } => {
            reply.array(8);
            reply.text("regex");
            reply.bulk(prefix);
            for (name, list) in [
                ("eventTypes", event_types),
                ("keyTypes", key_types),
                ("hookCommands", commands),
            ] {
                reply.text(name);
                write_list(reply, list.as_deref());
            }
        }
        EventSource::Stream {
            prefix,
            batch,
            duration_ms,
            on_failed,
            retry_interval_s,
            trim,
            ..
        } => {
            reply.array(12);
            reply.named_int("batchSize", int(*batch));
            reply.named_int("durationMS", int(*duration_ms));
            reply.text("stream");
            reply.bulk(prefix);
            reply.named_int("trimStream", i64::from(*trim));
            reply.named_bulk("onFailedPolicy", policy(*on_failed));
            reply.named_int("retryInterval", int(*retry_interval_s));
        }
        EventSource::Hook { command, inorder, .. } => {
            reply.array(4);
            reply.named_bulk("trigger", command);
            reply.named_int("inorder", i64::from(*inorder));
        }
        EventSource::Timer { schedule, everywhere } => {
            reply.array(4);
            reply.named_bulk("schedule", &timer(schedule));
            reply.named_int("everywhere", i64::from(*everywhere));
        }
    }
}

/// A schedule as text.
fn timer(schedule: &Schedule) -> String {
    match schedule {
        Schedule::Every { ms } => format!("every {ms} ms"),
        Schedule::Cron { expression } => format!("cron {expression}"),
    }
}

fn write_list(reply: &mut ReplyWriter, list: Option<&[String]>) {
    let Some(list) = list else { return reply.null() };
    reply.array(list.len());
    list.iter().for_each(|text| reply.text(text));
}

fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Finds what is active under an id.
pub type Find<'a> = &'a dyn Fn(&str) -> Option<Arc<Active>>;

/// Writes a session as a flat map; `registration` finds what is active here, for the long form.
pub fn write_session(reply: &mut ReplyWriter, session: &SessionView, registration: Option<Find<'_>>) {
    let is = &session.is;
    reply.array(16);
    reply.named_bulk("ID", &is.name);
    reply.text("sessionDescription");
    reply.bulk_or_null(is.description.as_deref());
    reply.named_int("refCount", int(session.holders as u64));
    reply.named_bulk("linked", session.link());
    reply.named_bulk("dead", if session.dead { "true" } else { "false" });
    reply.named_int("requirementInstallationNeeded", 0);
    reply.text("requirements");
    reply.array(is.requirements.len());
    is.requirements.iter().for_each(|name| reply.text(name));
    reply.text("registrations");
    reply.array(is.registrations.len());
    for id in &is.registrations {
        match registration.and_then(|find| find(id)) {
            Some(active) => write_registration(reply, &active, None),
            None => reply.text(id),
        }
    }
}

/// The fields of a registration in INFO.
pub fn info_fields(active: &Active, texts: &mut SessionTexts) -> Vec<(&'static str, String)> {
    let registration = &active.registration;
    let counts = active.core.stats.counts();
    let or_none = |text: Option<&str>| text.unwrap_or("None").to_owned();
    let mut fields = vec![
        ("desc", or_none(registration.description.as_deref())),
        ("reader", registration.source.reader().to_owned()),
        ("mode", mode(registration.mode).to_owned()),
        ("numTriggered", counts.triggered.to_string()),
        ("numSuccess", counts.success.to_string()),
        ("numFailures", counts.failures.to_string()),
        ("numAborted", counts.aborted.to_string()),
        ("lastRunDurationMS", counts.last_ms().to_string()),
        ("totalRunDurationMS", counts.total_ms().to_string()),
        ("avgRunDurationMS", counts.average_ms().to_string()),
    ];
    if is_stream(registration) {
        fields.push(("lastEstimatedLagMS", counts.last_lag_ms.to_string()));
        fields.push(("avgEstimatedLagMS", counts.average_lag_ms().to_string()));
    }
    fields.push(("lastError", or_none(counts.last_error.as_deref())));
    info_args(&mut fields, registration);
    fields.push(("PD", texts.of(active).to_owned()));
    // A comma would end the field.
    for (_, value) in &mut fields {
        *value = value.replace(',', "|");
    }
    fields
}

fn info_args(fields: &mut Vec<(&'static str, String)>, registration: &Registration) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let list = |list: &Option<Vec<String>>| match list {
        Some(list) => format!("[{}]", list.join("|")),
        None => "None".to_owned(),
    };
    match &registration.source {
        EventSource::Command { trigger, inorder } => {
            fields.push(("trigger", text(trigger)));
            fields.push(("inorder", u8::from(*inorder).to_string()));
        }
        EventSource::Keys {
            prefix,
            event_types,
            key_types,
            commands,
            ..
        } => {
            fields.push(("regex", text(prefix)));
            fields.push(("eventTypes", list(event_types)));
            fields.push(("keyTypes", list(key_types)));
            fields.push(("hookCommands", list(commands)));
        }
        EventSource::Stream {
            prefix,
            batch,
            duration_ms,
            on_failed,
            retry_interval_s,
            trim,
            ..
        } => {
            fields.push(("batchSize", batch.to_string()));
            fields.push(("durationMS", duration_ms.to_string()));
            fields.push(("stream", text(prefix)));
            fields.push(("status", status(registration).to_owned()));
            fields.push(("trimStream", u8::from(*trim).to_string()));
            fields.push(("onFailedPolicy", policy(*on_failed).to_owned()));
            fields.push(("retryInterval", retry_interval_s.to_string()));
        }
        EventSource::Hook { command, inorder, .. } => {
            fields.push(("trigger", command.clone()));
            fields.push(("inorder", u8::from(*inorder).to_string()));
        }
        EventSource::Timer { schedule, everywhere } => {
            fields.push(("schedule", timer(schedule)));
            fields.push(("everywhere", u8::from(*everywhere).to_string()));
            fields.push(("status", status(registration).to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_literals_of_python() {
        for (text, literal) in [
            ("plain", "'plain'"),
            ("it's", r"'it\'s'"),
            (r"back\slash", r"'back\\slash'"),
            ("two\r\nlines\t\0", r"'two\r\nlines\t\x00'"),
            ("é \u{2028}", r"'é \u2028'"),
        ] {
            assert_eq!(quoted(text), literal);
        }
    }
}
