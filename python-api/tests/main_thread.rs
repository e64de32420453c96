//! A program, not a test harness: sync triggers run on the main thread, whose stack the system made, and must not
//! overflow it however deep a script recurses.

use std::{sync::Arc, time::Duration};

use oxigears_python_api::{
    Acting, InitOptions, Invoked, Invoker, LogLevel, RegistrationDraft, Reply, RunRequest, Server, Session, TimerDraft,
    WhenOver, initialize, run_script,
};

/// A server that has nothing.
struct Nothing;

impl Server for Nothing {
    fn execute(&self, _: &[Vec<u8>]) -> Result<Reply, String> {
        Ok(Reply::Null)
    }

    fn execute_now(&self, args: &[Vec<u8>]) -> Option<Result<Reply, String>> {
        Some(self.execute(args))
    }

    fn try_lock(&self, _: Duration, _: &dyn Fn() -> bool) -> bool {
        true
    }

    fn unlock(&self) {}

    fn lock_held(&self) -> bool {
        true
    }

    fn hashtag(&self) -> Option<String> {
        None
    }

    fn log(&self, _: LogLevel, _: &str) {}

    fn config_get(&self, _: &str) -> Option<String> {
        None
    }

    fn cluster_size(&self) -> usize {
        1
    }

    fn traceback_enabled(&self) -> bool {
        false
    }

    fn profile_enabled(&self) -> bool {
        false
    }

    fn coroutine_refusal(&self) -> Option<String> {
        None
    }

    fn acting(&self) -> Acting {
        None
    }

    fn act_as(&self, _: Acting) -> Acting {
        None
    }

    fn start_run(&self, _: RunRequest, _: WhenOver) -> Result<String, String> {
        Err("no engine".into())
    }

    fn builder_made(&self) {}

    fn new_registration(
        &self,
        _: &Session,
        _: &oxigears_coordinator::registry::EventSource,
        earlier: &[RegistrationDraft],
    ) -> Result<String, String> {
        Ok(earlier.len().to_string())
    }

    fn register_now(&self, _: RegistrationDraft) -> Result<(), String> {
        Err("no registry".into())
    }

    fn register_timer(&self, _: TimerDraft) -> Result<bool, String> {
        Err("no timers".into())
    }
}

/// Recursion through C code, which takes the most stack per level; every one ends with the answer.
const SCRIPT: &str = "
import functools, re, sys
sys.setrecursionlimit(10**9)

def compare(n): return sorted([1, 2], key=lambda m: compare(m))
def largest(n): return max([n], key=lambda m: largest(m + 1))
def replace(n): return re.sub('a', lambda m: replace(n), 'a')
def reduced(n): return functools.reduce(lambda a, b: reduced(n), [1, 2])
class Attribute:
    def __getattr__(self, name): return getattr(self, 'x' + name[:3])
class Text:
    def __repr__(self): return repr([self])

def deep(x):
    try:
        {'compare': lambda: compare(0), 'largest': lambda: largest(0), 'replace': lambda: replace(0),
         'reduced': lambda: reduced(0), 'attribute': lambda: Attribute().x, 'text': lambda: repr(Text())}[x[1]]()
    except RecursionError:
        return 'as deep as it gets'

GB('CommandReader').map(deep).register(trigger='deep', mode='sync')
";

fn main() {
    let options = InitOptions {
        override_allocators: true,
        site_dirs: Vec::new(),
    };
    initialize(options, Arc::new(Nothing)).expect("the interpreter starts");
    let session = Session::create("s", None).expect("a session");
    let outcome = run_script(&session, SCRIPT.as_bytes()).expect("the script runs");
    let draft = &outcome.registrations[0];
    let invoker = Invoker::new(&draft.plan, &draft.functions).expect("the plan makes sense");
    for way in ["compare", "largest", "replace", "reduced", "attribute", "text"] {
        let outcome = invoker.call(&[b"deep".to_vec(), way.into()], None);
        let Invoked::Done(outcome) = outcome else {
            panic!("{way}: postponed");
        };
        assert!(outcome.errors.is_empty(), "{way}: {:?}", outcome.errors);
        let bytes = &outcome.results[0].bytes;
        assert!(
            bytes.ends_with(b"as deep as it gets"),
            "{way}: {}",
            String::from_utf8_lossy(bytes)
        );
    }
}
