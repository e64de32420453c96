//! Functions on another shard: a session of its own, the same code.

use super::*;

/// Runs the script's pipeline with the functions as another shard loads them.
fn run_elsewhere(script: &str) -> Outcome {
    let script = script.to_owned();
    on_worker(move || {
        fake::SHARDS.with(|s| s.set(2));
        let request = request(&script).unwrap();
        let functions = elsewhere(&request, 1);
        let remote = RunRequest { functions, ..request };
        execute(&remote, 1, Vec::new())
    })
}

fn check(setup: &str, program: &str, results: &[&str]) {
    let script = format!("{setup}\nGB('PythonReader').{program}.run(lambda: iter([1, 2, 3]))");
    let outcome = run_elsewhere(&script);
    assert_eq!(outcome.results, results, "{script}\n{:?}", outcome.errors);
}

#[test]
fn functions_find_their_names() {
    check("", "map(lambda x: x + 1)", &["2", "3", "4"]);
    check("k = 10", "map(lambda x: x * k)", &["10", "20", "30"]);
    check(
        "import math as m, os.path",
        "map(lambda x: (m.sqrt(4), os.path.basename('a/b')))",
        &["(2.0, 'b')"; 3],
    );
    check(
        "def f(n):\n    return 1 if n < 2 else n * f(n - 1)",
        "map(f)",
        &["1", "2", "6"],
    );
    check(
        "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)",
        "map(even)",
        &["False", "True", "False"],
    );
    check(
        "def mk(n):\n    return lambda x: x + n",
        "map(mk(42))",
        &["43", "44", "45"],
    );
    check(
        "def mk():\n    def f(n):\n        return n if n < 1 else f(n - 1)\n    return f",
        "map(mk())",
        &["0", "0", "0"],
    );
    check("def f(x, y=5, *, z=7): return x + y + z", "map(f)", &["13", "14", "15"]);
    check(
        "import functools\ndef add(a, b): return a + b",
        "map(functools.partial(add, 10))",
        &["11", "12", "13"],
    );
    check(
        "def f(x):\n    f.calls = getattr(f, 'calls', 0) + 1\n    return f.calls",
        "map(f)",
        &["1", "2", "3"],
    );
}

#[test]
fn classes_travel_by_value() {
    let class = "import json\nclass C:\n    base = 5\n    def __init__(self, n): self.n = n\n    \
                 def __call__(self, x): return json.dumps([self.n, x, C.base])\n    \
                 def method(self, x): return self.n + x";
    check(class, "map(C(7))", &["[7, 1, 5]", "[7, 2, 5]", "[7, 3, 5]"]);
    check(class, "map(C(7).method)", &["8", "9", "10"]);
    check(
        class,
        "map(C).map(lambda c: (type(c) is C, c.n))",
        &["(True, 1)", "(True, 2)", "(True, 3)"],
    );
    check(
        "class S:\n    def __init__(self): self.lock = __import__('threading').Lock()\n    \
           def __getstate__(self): return {}\n    def __setstate__(self, s): self.lock = 'new'\ns = S()",
        "map(lambda x: s.lock)",
        &["new"; 3],
    );
}

#[test]
fn globals_are_shared_and_not_overwritten() {
    check(
        "c = 0\ndef inc(x):\n    global c\n    c += 1\n    return c\ndef show(x): return (x, c)",
        "map(inc).map(show)",
        &["(1, 1)", "(2, 2)", "(3, 3)"],
    );
    // A second plan of the session finds the globals as the first one left them.
    let script = "c = 0\ndef inc(x):\n    global c\n    c += 1\n    return c\n\
                  GB('PythonReader').map(inc).run(lambda: iter([1, 2, 3]))";
    on_worker(move || {
        fake::SHARDS.with(|s| s.set(2));
        let request = request(script).unwrap();
        let first = elsewhere(&request, 1);
        let second = elsewhere(&request, 1);
        assert!(Arc::ptr_eq(first.session(), second.session()));
        let again = |functions: &Functions| {
            let remote = RunRequest {
                functions: functions.clone(),
                plan: request.plan.clone(),
                session: functions.session().clone(),
                nested: false,
            };
            execute(&remote, 1, Vec::new()).results
        };
        assert_eq!(again(&first), ["1", "2", "3"]);
        assert_eq!(again(&second), ["4", "5", "6"]);
        let here = execute(&request, 1, Vec::new()).results;
        assert_eq!(here, ["1", "2", "3"], "this shard has globals of its own");
    });
}

#[test]
fn names_of_the_environment_do_not_travel() {
    check(
        "",
        "map(lambda x: (execute('ping'), hashtag(), GB is GearsBuilder, __name__))",
        &["('PONG', '06S', True, 'not_main')"; 3],
    );
    check("e = execute", "map(lambda x: e('ping'))", &["PONG"; 3]);
    check("def log(x): return 'mine'", "map(lambda x: log(x))", &["mine"; 3]);
    check("", "map(lambda x: redisgears.executeCommand('ping'))", &["PONG"; 3]);
    check(
        "def f(x):\n    try:\n        execute('wrong')\n    except redisgears.GearsError as e:\n        return str(e)",
        "map(f)",
        &["WRONGTYPE Operation against a key"; 3],
    );
}

#[test]
fn what_can_not_travel_is_named() {
    let error = |script: &str| {
        let script = script.to_owned();
        on_worker(move || {
            fake::SHARDS.with(|s| s.set(2));
            let session = Session::create("test", None).unwrap();
            run_script(&session, script.as_bytes()).expect_err("it can not be pickled")
        })
    };
    let lock = "import threading\nlock = threading.Lock()\n";
    let text = error(&format!("{lock}GB().map(lambda x: lock).run()"));
    assert!(
        text.contains("Error occured when serialized a python callback, callback=<lambda> error="),
        "{text}"
    );
    assert!(text.contains("cannot pickle '_thread.lock' object"), "{text}");
    let text = error(&format!(
        "{lock}def good(x): return x\ndef bad(x): return lock\nGB().map(good).filter(bad).run()"
    ));
    assert!(text.contains("callback=bad error="), "{text}");
}

#[test]
fn local_runs_need_no_pickling() {
    on_worker(|| {
        fake::SHARDS.with(|s| s.set(3));
        let script = "import threading\nlock = threading.Lock()\nGB().map(lambda x: lock).run(mode='async_local')";
        assert!(request(script).unwrap().plan.code.is_empty());
    });
}

#[test]
fn records_of_script_classes_keep_their_class() {
    let script = "class P:\n    def __init__(self, n): self.n = n\n\
                  PR = GB('PythonReader').map(P).repartition(lambda p: p.n).map(lambda p: (type(p) is P, p.n)).collect()\n\
                  PR.sort().run(lambda: iter([1, 2, 3]))";
    on_worker(move || {
        fake::SHARDS.with(|s| s.set(3));
        let outcome = execute(&request(script).unwrap(), 3, Vec::new());
        assert_eq!(outcome.errors, [""; 0]);
        assert_eq!(outcome.results.len(), 9);
        assert!(
            outcome.results.iter().all(|r| r.starts_with("(True, ")),
            "{:?}",
            outcome.results
        );
    });
}

#[test]
fn foreign_bytes_are_no_functions() {
    on_worker(|| {
        fake::SHARDS.with(|s| s.set(2));
        let good = request("GB().map(lambda x: x).run()").unwrap().plan;
        let refused = |change: &dyn Fn(&mut Vec<u8>), text: &str| {
            let mut plan = good.clone();
            change(&mut plan.code);
            let error = load_functions(&plan).expect_err(text);
            assert!(error.contains(text), "{error}");
        };
        refused(&|code| code.truncate(5), "cut off");
        refused(&|code| code[0] = b'X', "unknown format");
        refused(&|code| code[5] += 1, "come from Python 3.");
        refused(&|code| code.truncate(40), "can not be loaded");
    });
}
