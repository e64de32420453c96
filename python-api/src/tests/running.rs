//! Slices, windows, aborts, stacks.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use oxigears_coordinator::codec::{put_tagged, tag};

use super::*;

fn batches(count: usize, records: u32) -> Vec<RecordBatch> {
    (0..count)
        .map(|_| {
            let mut bytes = Vec::new();
            for i in 0..records {
                put_tagged(&mut bytes, tag::TEXT, format!("word{}", i % 100).as_bytes());
            }
            RecordBatch {
                bytes: bytes.into(),
                records,
            }
        })
        .collect()
}

/// Drives the first stage of a script's plan with a sink that takes one batch at a time.
fn first_stage(script: &str, input: Vec<RecordBatch>) -> LoopSink {
    let script = script.to_owned();
    on_worker(move || {
        let request = request(&script).unwrap();
        let stages = request.plan.stages(false);
        let mut runners = compile(&request.plan, &stages, &request.functions, context(1, 0)).unwrap();
        let mut sink = LoopSink::new(1, true);
        sink.window = 1;
        drive(runners[0].as_mut(), input, &mut sink);
        sink
    })
}

#[test]
fn windows_bound_what_is_emitted_at_once() {
    for script in [
        "GB().flatmap(lambda x: [x] * 1000).run()",
        "GB().batchgroupby(lambda x: x, lambda k, l: k * 10).flatmap(lambda r: [r['value']] * 1000).run()",
        "GB().flatmap(lambda x: [x + str(i) for i in range(100)]).countby().run()",
        "GB().flatmap(lambda x: [x + str(i) for i in range(100)]).sort().run()",
        "GB().flatmap(lambda x: [x + str(i) for i in range(100)]).distinct().run()",
    ] {
        let sink = first_stage(script, batches(1, 100));
        assert!(sink.emitted.len() > 2, "{script}");
        // Each time the window was full the runner came back after the batch at hand.
        assert!(
            sink.yields + 2 >= sink.emitted.len(),
            "{script}: {} for {}",
            sink.yields,
            sink.emitted.len()
        );
    }
}

#[test]
fn native_chains_give_what_python_chains_give() {
    for (native, python) in [
        ("count()", "map(lambda x: x).count()"),
        ("countby()", "map(lambda x: x).countby(lambda x: x).map(lambda r: r)"),
    ] {
        let run = |chain: &str| {
            let script = format!("GB().{chain}.run()");
            on_worker(move || {
                let mut outcome = execute(&request(&script).unwrap(), 1, batches(5, 1000));
                outcome.results.sort();
                outcome
            })
        };
        let outcome = run(native);
        assert_eq!(outcome, run(python));
        assert!(!outcome.results.is_empty());
    }
}

#[test]
fn batches_pass_a_stage_without_steps() {
    let sink = first_stage("GB().run(convertToStr=False)", batches(3, 10));
    assert_eq!(sink.emitted.iter().map(|(_, b)| b.records).sum::<u32>(), 30);
}

#[test]
fn a_busy_loop_is_interrupted() {
    let script = "def spin(x):\n    while True:\n        pass\n\
                  def guard(x):\n    try:\n        spin(x)\n    except ValueError:\n        pass\n\
                  GB('PythonReader').map(guard).run(lambda: iter([1, 2, 3]))";
    on_worker(move || {
        let request = request(script).unwrap();
        let stages = request.plan.stages(false);
        let ctx = context(1, 0);
        let interrupt = ctx.interrupt.clone();
        let mut runners = compile(&request.plan, &stages, &request.functions, ctx).unwrap();
        let mut sink = LoopSink::new(1, true);
        let aborted = sink.aborted.clone();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopper = thread::spawn({
            let done = done.clone();
            move || {
                thread::sleep(Duration::from_millis(50));
                aborted.store(true, Ordering::Relaxed);
                let deadline = Instant::now() + Duration::from_secs(60);
                while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                    interrupt.request();
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        assert_eq!(runners[0].run(&mut sink), RunState::Yield);
        done.store(true, Ordering::Relaxed);
        stopper.join().unwrap();
        assert_eq!(sink.errors.len(), 1, "{:?}", sink.errors);
        assert!(sink.errors[0].contains("gears.forcestopped"), "{}", sink.errors[0]);
        drop(runners);
        // Nothing hits the code that this thread runs next.
        let after = "t = 0\nfor i in range(100000): t += i\nGB('PythonReader').run(lambda: iter([t]))";
        assert_eq!(
            execute(&super::request(after).unwrap(), 1, Vec::new()).results,
            ["4999950000"]
        );
    });
}

#[test]
fn an_interrupt_without_running_code_does_nothing() {
    on_worker(|| {
        let interrupt = Interrupt::new();
        interrupt.request();
        assert_eq!(
            execute(
                &request("GB('PythonReader').run(lambda: iter([1]))").unwrap(),
                1,
                Vec::new()
            )
            .results,
            ["1"]
        );
    });
}

#[test]
fn deep_recursion_is_an_error_and_the_stack_holds() {
    let deep = |code: &str| {
        let script = format!(
            "import sys\nsys.setrecursionlimit(10**9)\nlimit = sys.getrecursionlimit()\n{code}\n\
             GB('PythonReader').map(lambda x: f(0)).run(lambda: iter([1]))"
        );
        let outcome = run(&script);
        assert_eq!(outcome.errors.len(), 1, "{code}: {:?}", outcome.results);
        assert!(
            outcome.errors[0].contains("RecursionError"),
            "{code}: {}",
            outcome.errors[0]
        );
    };
    deep("def f(n): return f(n + 1)");
    // Each level goes through C code.
    deep("def f(n): return max([n], key=lambda m: f(m + 1))");
    deep("def f(n): return sorted([1, 2], key=lambda m: f(m))");
    deep("class A:\n    def __getattr__(self, name): return getattr(self, name + 'x')\ndef f(n): return A().x");
    deep("import functools\n@functools.lru_cache(None)\ndef f(n): return f(n + 1)");
    deep("import re\ndef f(n): return re.sub('a', lambda m: f(n), 'a')");
    deep("class A:\n    def __repr__(self): return repr([self])\ndef f(n): return repr(A())");
    assert_eq!(
        run("import sys\nGB('PythonReader').run(lambda: iter([sys.getrecursionlimit()]))").results,
        ["20000"]
    );
}

#[test]
fn durations_are_measured_when_asked_for() {
    on_worker(|| {
        let script = "import time\nGB('PythonReader').map(lambda x: time.sleep(0.02)).filter(lambda x: True).count().run(lambda: iter([1]))";
        let request = request(script).unwrap();
        let stages = request.plan.stages(false);
        let ctx = ExecContext {
            origin: None,
            profile: true,
            ..context(1, 0)
        };
        let mut runners = compile(&request.plan, &stages, &request.functions, ctx).unwrap();
        drive(runners[0].as_mut(), Vec::new(), &mut LoopSink::new(1, true));
        let durations = runners[0].durations_ns();
        assert_eq!(durations.len(), stages[0].locals.len());
        assert!(durations[0] >= 20_000_000 && durations[1] > 0, "{durations:?}");
    });
}

#[test]
fn pattern_generators_are_asked_on_each_shard() {
    on_worker(|| {
        use oxigears_coordinator::plan::Reader;
        let resolve = |script: &str| {
            let request = request(script).unwrap();
            crate::resolve_reader(&request.plan, &request.functions)
        };
        let reader = resolve("GB('KeysOnlyReader').run(patternGenerator=lambda: ('u:2', True), count=5)").unwrap();
        let expected = Reader::KeysOnly {
            pattern: b"u:2".to_vec(),
            no_scan: true,
            count: "5".into(),
            generator: None,
        };
        assert_eq!(reader, expected);
        assert!(resolve("GB('KeysOnlyReader').run(patternGenerator=lambda: 5)").is_err());
        assert!(
            resolve("GB('KeysOnlyReader').run(patternGenerator=lambda: bad)")
                .unwrap_err()
                .contains("NameError")
        );
        let plain = resolve("GB('KeysOnlyReader').run('u*', noScan=True)").unwrap();
        assert_eq!(
            plain,
            Reader::KeysOnly {
                pattern: b"u*".to_vec(),
                no_scan: true,
                count: "1000".into(),
                generator: None
            }
        );
    });
}

#[test]
fn sessions_are_freed_with_their_globals() {
    let script = "class Big:\n    pass\nbig = Big()\nimport weakref, gc\n\
                  weakref.finalize(big, execute, 'incr', 'freed')\ndef f(x): return big\n\
                  GB('PythonReader').map(f).run(lambda: iter([1]))";
    let freed = "GB('PythonReader').map(lambda x: execute('get', 'freed')).run(lambda: iter([1]))";
    run(script);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Sessions that ended are collected when later scripts run.
    while run(freed).results != ["1"] {
        assert!(Instant::now() < deadline, "the session's globals are still there");
        thread::sleep(Duration::from_millis(20));
    }
}
