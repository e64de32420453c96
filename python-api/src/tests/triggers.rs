//! Sync triggers: one record, at once, on the calling thread.

use std::time::{Duration, Instant};

use super::*;
use crate::encode_arguments;

/// Registers a sync trigger with these steps and calls it with the arguments, one call after another.
fn calls(setup: &str, steps: &str, calls: &[&[&[u8]]]) -> Vec<Outcome> {
    let script = format!("{setup}\nGB('CommandReader'){steps}");
    let calls: Vec<Vec<Vec<u8>>> = calls
        .iter()
        .map(|args| args.iter().map(|arg| arg.to_vec()).collect())
        .collect();
    on_worker(move || {
        let draft = register(&script).pop().expect("the script registers");
        let invoker = invoker(&draft);
        calls
            .iter()
            .map(|args| {
                let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                invoke(&invoker, &draft.session, &args)
            })
            .collect()
    })
}

fn sync(steps: &str) -> String {
    format!("{steps}.register(trigger='t', mode='sync')")
}

fn raw(steps: &str) -> String {
    format!("{steps}.register(trigger='t', mode='sync', convertToStr=False)")
}

fn gives(steps: &str, args: &[&[u8]], results: &[&str]) {
    let outcome = calls("", steps, &[args]).remove(0);
    assert_eq!(outcome.results, results, "{steps}: {:?}", outcome.errors);
    assert!(outcome.errors.is_empty(), "{steps}: {:?}", outcome.errors);
}

#[test]
fn the_record_is_the_list_of_arguments() {
    gives(&sync(""), &[b"t", b"a", b"b"], &["['t', 'a', 'b']"]);
    gives(&raw(".map(lambda x: x)"), &[b"t", b"a"], &["['t', 'a']"]);
    gives(&sync(""), &[], &["[]"]);
    gives(
        &sync(".map(lambda x: x[1:])"),
        &[b"t", b"a\0b", b""],
        &["['a\\x00b', '']"],
    );
    gives(
        &sync(".map(lambda x: x[1])"),
        &[b"t", "h\u{e9}\u{1f600}".as_bytes()],
        &["h\u{e9}\u{1f600}"],
    );
    // What is not UTF-8, a lone surrogate among it, comes as a bytearray.
    gives(
        &sync(".map(lambda x: x[1:])"),
        &[b"t", b"\xff\0", b"\xed\xa0\x80"],
        &["[bytearray(b'\\xff\\x00'), bytearray(b'\\xed\\xa0\\x80')]"],
    );
    gives(
        &sync(".map(lambda x: x[1] * 3)"),
        &[b"t", &[b'x'; 100_000]],
        &["x".repeat(300_000).as_str()],
    );
}

#[test]
fn results_keep_their_types() {
    gives(
        &raw(".flatmap(lambda x: [int(x[1]), None, (1,), b'x', 1.5])"),
        &[b"t", b"-5"],
        &["-5", "None", "(1,)", "b'x'", "1.5"],
    );
    gives(&sync(".filter(lambda x: False)"), &[b"t"], &[]);
    gives(
        &sync(".flatmap(lambda x: x[1:])"),
        &[b"t", b"a", b"b", b"c"],
        &["a", "b", "c"],
    );
    gives(&raw(".map(lambda x: threading.Lock())"), &[b"t"], &["<lock object>"]);
}

#[test]
fn errors_are_those_of_pipelines() {
    let outcome = calls("", &sync(".map(lambda x: bad)"), &[&[b"t"]]).remove(0);
    assert!(outcome.results.is_empty());
    assert!(
        outcome.errors[0].starts_with("['Traceback (most recent call last):\\n'")
            && outcome.errors[0].contains("NameError"),
        "{:?}",
        outcome.errors
    );
    let outcome = calls("", &sync(".map(lambda x: flat_error('ERR mine'))"), &[&[b"t"]]).remove(0);
    assert_eq!(outcome.errors, ["ERR mine"]);
    let split = raw(".flatmap(lambda x: x[1:]).map(lambda x: int(x))");
    let outcome = calls("", &split, &[&[b"t", b"1", b"z", b"2"]]).remove(0);
    assert_eq!(outcome.results, ["1", "2"]);
    assert_eq!(outcome.errors.len(), 1);
    assert!(outcome.errors[0].contains("invalid literal for int() with base 10: 'z'"));
    let stopped = "def stop(x): raise redisgears.GearsForceStopped('now')";
    let outcome = calls(stopped, &sync(".map(stop)"), &[&[b"t"]]).remove(0);
    assert!(
        outcome.errors[0].contains("gears.forcestopped: now"),
        "{:?}",
        outcome.errors
    );
    let outcome = calls(
        "",
        &sync(".map(lambda x: (_ for _ in ()).throw(SystemExit(3)))"),
        &[&[b"t"]],
    )
    .remove(0);
    assert!(outcome.errors[0].contains("SystemExit"), "{:?}", outcome.errors);
}

/// Each call starts anew, also after a call that failed or left things behind.
#[test]
fn every_operation_keeps_nothing_between_calls() {
    for steps in [
        "accumulate(lambda a, x: (a or '') + x)",
        "accumulate(lambda a, x: [] if x == 'boom' and bad else [x])",
        "aggregate([], lambda a, x: a + [x], lambda a, b: a + b)",
        "aggregateby(lambda x: x, 0, lambda k, a, x: a + 1, lambda k, a, b: a + b)",
        "groupby(lambda x: x, lambda k, a, x: (a or 0) + 1)",
        "localgroupby(lambda x: x, lambda k, a, x: (a or 0) + 1)",
        "batchgroupby(lambda x: x, lambda k, l: len(l))",
        "count()",
        "countby()",
        "countby(lambda x: len(x)).map(lambda r: r['value'])",
        "sort()",
        "sort(reverse=False)",
        "distinct()",
        "avg(lambda x: len(x))",
        "limit(2)",
        "limit(2, 1)",
        "limit(1).map(lambda x: x + '!')",
        "collect().repartition(lambda x: x)",
        "flatmap(lambda x: list(x)).limit(3).countby()",
        "map(lambda x: bad if x == 'boom' else x).count()",
        "foreach(lambda x: x).filter(lambda x: x != 'b').distinct().sort()",
    ] {
        // The expected results come from the engine's way to run the same steps.
        let expected = |values: &str| run(&with_source(values, &format!("PR.{steps}.run(src)")));
        let sets: [(&[&[u8]], &str); 3] = [
            (&[b"t", b"b", b"a", b"b", b"cc"], "'b', 'a', 'b', 'cc'"),
            (&[b"t", b"a", b"boom", b"a"], "'a', 'boom', 'a'"),
            (&[b"t"], ""),
        ];
        let args: Vec<&[&[u8]]> = [0, 1, 0, 2, 1, 0].iter().map(|&i| sets[i].0).collect();
        let outcomes = calls("", &sync(&format!(".flatmap(lambda x: x[1:]).{steps}")), &args);
        for (&i, outcome) in [0, 1, 0, 2, 1, 0].iter().zip(&outcomes) {
            let (values, expected) = (sets[i].1, expected(sets[i].1));
            // A reader stops at its first error; a list that was read already goes on.
            if expected.errors.is_empty() {
                assert_eq!(*outcome, expected, "{steps} over {values}");
            } else {
                assert!(
                    outcome.errors[0].contains("NameError"),
                    "{steps} over {values}: {outcome:?}"
                );
            }
        }
        assert_eq!(outcomes[0], outcomes[2], "{steps}");
        assert_eq!(outcomes[0], outcomes[5], "{steps}");
        assert_eq!(outcomes[1].results, outcomes[4].results, "{steps}");
    }
}

#[test]
fn callbacks_of_a_script_share_its_globals() {
    let script = "c = 0\ndef inc(x):\n    global c\n    c += 1\n    return c\n\
                  GB('CommandReader').map(inc).register(trigger='d', mode='sync', convertToStr=False)\n\
                  GB('CommandReader').map(inc).register(trigger='e', mode='sync', convertToStr=False)";
    on_worker(move || {
        let drafts = register(script);
        let here = [drafts[0].functions.clone(), drafts[1].functions.clone()];
        // A shard that loads both, one after the other; the second joins the session that the first made.
        let there = [
            loaded_elsewhere(&drafts[0].plan, 1),
            loaded_elsewhere(&drafts[1].plan, 1),
        ];
        assert!(Arc::ptr_eq(there[0].session(), there[1].session()));
        for functions in [here, there] {
            let invokers: Vec<Invoker> = drafts
                .iter()
                .zip(&functions)
                .map(|(draft, functions)| Invoker::new(&draft.plan, functions).unwrap())
                .collect();
            let mut got = Vec::new();
            for i in [0, 0, 1] {
                got.extend(invoke(&invokers[i], functions[0].session(), &[b"d"]).results);
            }
            assert_eq!(got, ["1", "2", "3"]);
        }
        // The same script again is another session with the same name.
        let again = register(script);
        assert_eq!(invoke(&invoker(&again[0]), &again[0].session, &[b"d"]).results, ["1"]);
    });
}

#[test]
fn builders_may_be_used_again() {
    let script = "b = GB('CommandReader').map(lambda x: x)\n\
                  b.register(trigger='a1', mode='sync', convertToStr=False)\n\
                  b.map(lambda x: 'added')\nb.register(trigger='a2', mode='sync')";
    on_worker(move || {
        let drafts = register(script);
        let call = |i: usize| invoke(&invoker(&drafts[i]), &drafts[i].session, &[b"a", b"x"]).results;
        assert_eq!(call(0), ["['a', 'x']"]);
        assert_eq!(call(1), ["added"]);
    });
}

#[test]
fn triggers_call_triggers() {
    on_worker(|| {
        let fake = fake::start();
        let drafts = register(
            "def down(x):\n    n = int(x[1])\n    if n == 0: return 'end'\n    \
             return str(n) + execute('RG.TRIGGER', 'nested:down', n - 1)[0]\n\
             GB('CommandReader').map(down).register(trigger='nested:down', mode='sync')\n\
             GB('CommandReader').flatmap(lambda x: x[1:]).map(lambda x: execute('RG.TRIGGER', 'nested:count', *'abc')[0])\
             .accumulate(lambda a, x: (a or []) + [x]).register(trigger='nested:sum', mode='sync')\n\
             GB('CommandReader').flatmap(lambda x: x).count().register(trigger='nested:count', mode='sync')\n\
             def both(x):\n    with atomic():\n        inner = execute('RG.TRIGGER', 'nested:block')\n        return inner, isInAtomicBlock()\n\
             def block(x):\n    before = isInAtomicBlock()\n    with atomic():\n        return before, isInAtomicBlock()\n\
             GB('CommandReader').map(both).register(trigger='nested:both', mode='sync')\n\
             GB('CommandReader').map(block).register(trigger='nested:block', mode='sync')\n\
             GB('CommandReader').map(lambda x: atomic().__enter__()).register(trigger='nested:open', mode='sync')\n\
             def endless(x):\n    try:\n        return execute('RG.TRIGGER', 'nested:endless')[0]\n    except Exception as e:\n        return 'too deep' if 'too deeply' in str(e) else str(e)\n\
             GB('CommandReader').map(endless).register(trigger='nested:endless', mode='sync')",
        );
        for draft in &drafts {
            let oxigears_coordinator::registry::EventSource::Command { trigger, .. } = &draft.source else {
                panic!("{draft:?}");
            };
            fake.triggers.lock().insert(trigger.to_vec(), Arc::new(invoker(draft)));
        }
        let call = |trigger: &str, args: &[&[u8]]| {
            let invoker = fake.triggers.lock().get(trigger.as_bytes()).cloned().unwrap();
            let args: Vec<&[u8]> = std::iter::once(trigger.as_bytes())
                .chain(args.iter().copied())
                .collect();
            invoke(&invoker, &drafts[0].session, &args)
        };
        assert_eq!(call("nested:down", &[b"5"]).results, ["54321end"]);
        assert_eq!(call("nested:sum", &[b"x", b"y"]).results, ["['4', '4']"]);
        // An inner call has an atomic block of its own, and the outer one is still there afterwards.
        assert_eq!(call("nested:both", &[]).results, ["(['(False, True)'], True)"]);
        assert_eq!(call("nested:open", &[]).errors, Vec::<String>::new());
        assert!(!crate::server::server().lock_held());
        // Endless recursion is an error; if its errors quote each other, one of bounded size.
        let outcome = call("nested:down", &[b"-1"]);
        assert!(outcome.errors[0].len() <= oxigears_coordinator::limits::ERROR_TEXT_BYTES);
        assert_eq!(call("nested:endless", &[]).results, ["too deep"]);
        fake.triggers.lock().retain(|name, _| !name.starts_with(b"nested:"));
    });
}

#[test]
fn many_threads_call_one_trigger() {
    let script = "GB('CommandReader').flatmap(lambda x: x[1:]).groupby(lambda x: x, lambda k, a, x: (a or 0) + 1)\
                  .sort().register(trigger='t', mode='sync')\nGB('CommandReader').flatmap(lambda x: x[1:])\
                  .groupby(lambda x: x, lambda k, a, x: (a or 0) + 1).map(lambda r: (r['key'], r['value'])).sort()\
                  .register(trigger='u', mode='sync')";
    on_worker(move || {
        let draft = register(script).pop().unwrap();
        let invoker = invoker(&draft);
        thread::scope(|scope| {
            for number in 0..8 {
                let (invoker, draft) = (&invoker, &draft);
                scope.spawn(move || {
                    let name = format!("n{number}");
                    for _ in 0..200 {
                        let got = invoke(invoker, &draft.session, &[b"u", name.as_bytes(), b"z", name.as_bytes()]);
                        assert_eq!(got.results, [format!("('{name}', 2)"), "('z', 1)".to_owned()]);
                    }
                });
            }
        });
    });
}

#[test]
fn the_other_modes_get_the_same_record() {
    on_worker(|| {
        let draft = register("GB('CommandReader').map(lambda x: x[1:]).register(trigger='t')").remove(0);
        let args = [&b"t"[..], b"a", b"\xff", b"n\0n", b""];
        let batch = encode_arguments(&args.map(<[u8]>::to_vec));
        batch.check().unwrap();
        let shards = vec![draft.functions.clone(), loaded_elsewhere(&draft.plan, 1)];
        for functions in shards {
            let request = RunRequest {
                plan: draft.plan.clone(),
                session: functions.session().clone(),
                functions,
                nested: true,
            };
            let outcome = execute(&request, 1, vec![batch.clone()]);
            assert_eq!(outcome.results, ["['a', bytearray(b'\\xff'), 'n\\x00n', '']"]);
            assert_eq!(outcome, invoke(&invoker(&draft), &draft.session, &args));
        }
    });
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    on_worker(|| {
        let mut draft = register("GB('CommandReader').map(lambda x: x).register(trigger='t')").remove(0);
        draft.plan.ops[0] = oxigears_coordinator::plan::Op::Map(7);
        assert!(Invoker::new(&draft.plan, &draft.functions).is_err());
    });
}

#[test]
fn the_holder_of_the_gil_is_seen() {
    on_worker(|| {
        Python::attach(|_| assert!(!crate::gil_is_free()));
        let deadline = Instant::now() + Duration::from_secs(60);
        // Other tests hold it now and then.
        while !crate::gil_is_free() {
            assert!(Instant::now() < deadline, "the GIL is never free");
            thread::yield_now();
        }
    });
}

/// Sessions go with their last registration, on shards where no script ever runs as well.
#[test]
fn rounds_of_registrations_leave_nothing() {
    const ROUNDS: usize = 1000;
    let script = "import weakref\nclass Big:\n    def __init__(self): self.data = [0] * 1000\n    \
                  def __setstate__(self, state):\n        self.data = [0] * 1000\n        \
                  weakref.finalize(self, execute, 'incr', 'rounds:there')\n\
                  big = Big()\nweakref.finalize(big, execute, 'incr', 'rounds:here')\n\
                  def f(x): return len(big.data)\n\
                  GB('CommandReader').map(f).register(trigger='r', mode='sync', onRegistered=lambda: f(0))";
    on_worker(move || {
        for round in 0..ROUNDS {
            let draft = register(script).remove(0);
            let there = loaded_elsewhere(&draft.plan, 1);
            for functions in [&draft.functions, &there] {
                let invoker = Invoker::new(&draft.plan, functions).unwrap();
                let results = invoke(&invoker, functions.session(), &[b"r"]).results;
                assert_eq!(results, ["1000"], "round {round}");
            }
        }
        let freed = |key: &str| {
            let get = [b"get".to_vec(), key.as_bytes().to_vec()];
            match crate::server::server().execute(&get) {
                Ok(crate::Reply::Bulk(count)) => String::from_utf8(count).unwrap().parse().unwrap(),
                _ => 0,
            }
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        while freed("rounds:here") < ROUNDS || freed("rounds:there") < ROUNDS {
            assert!(
                Instant::now() < deadline,
                "{} and {} sessions of {ROUNDS} were freed",
                freed("rounds:here"),
                freed("rounds:there")
            );
            thread::sleep(Duration::from_millis(20));
        }
    });
}
