//! `registerTE()` and `register()` of TimerReader: what they check and what they ask the server for.

use oxigears_coordinator::registry::{EventSource, Schedule};

use super::*;

fn refused(call: &str, text: &str) {
    let error = failure(&format!("def f(): pass\nasync def c(): pass\n{call}"));
    assert!(error.contains(&format!("gears.error: {text}")), "{call}\n{error}");
}

#[test]
fn timers_are_checked() {
    for (call, text) in [
        ("registerTE()", "not enough arguments for time event"),
        ("registerTE(1)", "not enough arguments for time event"),
        ("registerTE(1, f, 'a', 1)", "not enough arguments for time event"),
        ("registerTE(1, f, 'a', key='a')", "not enough arguments for time event"),
        ("registerTE(1, f, name='a')", "not enough arguments for time event"),
        ("registerTE(1, len)", "callback must be a function"),
        (
            "registerTE(1, c)",
            "callback must be a function, not a coroutine function",
        ),
        ("registerTE(None, f)", "time argument must be a long"),
        ("registerTE(0.5, f)", "time argument must be a long"),
        ("registerTE(-1, f)", "time argument must be between 0 and"),
        ("GB('TimerReader').register()", "TimerReader needs either interval"),
        (
            "GB('TimerReader').register(interval=0.0004)",
            "interval argument must be between",
        ),
        (
            "GB('TimerReader').register(interval=[])",
            "interval argument must be a number",
        ),
        (
            "GB('TimerReader').register(cron='* * *')",
            "a cron expression has five fields",
        ),
        (
            "GB('TimerReader').register(cron='0 0 31 2 *')",
            "the cron expression `0 0 31 2 *` never comes",
        ),
        (
            "GB('TimerReader').register(interval=1, everywhere=None)",
            "everywhere argument must be",
        ),
        ("GB('TimerReader').run()", "Given reader do not support run"),
    ] {
        refused(call, text);
    }
}

#[test]
fn a_timer_takes_its_function_along_if_it_has_a_key() {
    let key = "a key of this test";
    let script = format!(
        "c = 7\ndef f(): return c\nassert registerTE(2, f, key={key:?}) is True\nassert registerTE(2, f, {key:?}) is False\n\
         assert registerTE(0, f) is True"
    );
    on_worker(move || {
        let session = Session::create("timers", None).unwrap();
        run_script(&session, script.as_bytes()).unwrap();
        let timers = fake::start().timers.lock();
        let mine = |t: &&crate::TimerDraft| t.functions.session().id() == "timers";
        let mine: Vec<_> = timers.iter().filter(mine).collect();
        assert_eq!(mine.len(), 2);
        assert_eq!(
            (mine[0].period_ms, mine[0].key.as_deref()),
            (2000, Some(key.as_bytes()))
        );
        assert!(!mine[0].code.is_empty());
        assert_eq!((mine[1].period_ms, &mine[1].key, mine[1].code.len()), (0, &None, 0));
    });
}

#[test]
fn schedules_reach_the_registry() {
    for (arguments, schedule, everywhere) in [
        ("interval=1", Schedule::Every { ms: 1000 }, false),
        ("interval=0.25, everywhere=True", Schedule::Every { ms: 250 }, true),
        (
            "cron='*/5 * * * mon'",
            Schedule::Cron {
                expression: "*/5 * * * mon".into(),
            },
            false,
        ),
    ] {
        let script = format!("GB('TimerReader').map(lambda x: x).register({arguments})");
        let drafts = on_worker(move || {
            let session = Session::create("test", None).unwrap();
            run_script(&session, script.as_bytes()).unwrap().registrations
        });
        assert_eq!(drafts.len(), 1);
        assert_eq!(drafts[0].source, EventSource::Timer { schedule, everywhere });
        assert_eq!(drafts[0].source.reader(), "TimerReader");
        assert!(drafts[0].source.is_pausable());
    }
}
