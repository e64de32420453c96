//! Records that come back later: coroutines, futures, order, bounds, what may not be awaited.

use std::time::{Duration, Instant};

use super::*;

const HEAD: &str = "import asyncio, time, gc
def later(f, delay=lambda x: 0.01):
    async def step(*args):
        await asyncio.sleep(delay(args[-1]))
        return f(*args)
    return step
def soon(f):
    async def step(*args):
        return f(*args)
    return step
";

/// Like `check`, with the helpers at hand.
fn gives(values: &str, program: &str, results: &[&str], errors: &[&str]) {
    let script = format!("{HEAD}{}", with_source(values, program));
    let outcome = run(&script);
    assert_eq!(outcome.results, results, "\n{program}\n{:?}", outcome.errors);
    assert_eq!(outcome.errors, errors, "\n{program}\n{:?}", outcome.errors);
}

#[test]
fn order_is_kept_and_values_count_as_in_plain_steps() {
    let backwards = "lambda x: 0.01 * (5 - x)";
    for wrap in ["later", "soon"] {
        let delay = if wrap == "later" {
            format!(", {backwards}")
        } else {
            String::new()
        };
        gives(
            "0, 1, 2, 3, 4",
            &format!("PR.map({wrap}(lambda x: x * 10{delay})).run(src)"),
            &["0", "10", "20", "30", "40"],
            &[],
        );
        gives(
            "0, 1, 2, 3, 4",
            &format!("PR.filter({wrap}(lambda x: x % 2{delay})).run(src)"),
            &["1", "3"],
            &[],
        );
        gives(
            "5, 6",
            &format!("PR.flatmap({wrap}(lambda x: [x, -1, 9])).map(lambda x: 'v%s' % x).run(src)"),
            &["v5", "v-1", "v9", "v6", "v-1", "v9"],
            &[],
        );
        gives(
            "5",
            &format!("PR.flatmap({wrap}(lambda x: (x,))).run(src)"),
            &["(5,)"],
            &[],
        );
        gives(
            "0, 1, 2",
            &format!("PR.foreach({wrap}(lambda x: 'no')).run(src)"),
            &["0", "1", "2"],
            &[],
        );
        gives(
            "0, 1, 2, 3, 4",
            &format!("PR.accumulate({wrap}(lambda a, x: (a or 0) + x)).run(src)"),
            &["10"],
            &[],
        );
        gives(
            "0, 1, 2, 3, 4",
            &format!(
                "PR.groupby(lambda x: x % 2, {wrap}(lambda k, a, x: (a or 0) + x)).map(lambda r: (r['key'], r['value']))\
                 .sort().run(src)"
            ),
            &["('0', 6)", "('1', 4)"],
            &[],
        );
        gives(
            "1, 2, 3",
            &format!("PR.aggregate(0, {wrap}(lambda a, x: a + x), {wrap}(lambda a, x: a + x)).run(src)"),
            &["6"],
            &[],
        );
        gives(
            "1, 2, 3",
            &format!(
                "PR.aggregateby(lambda x: x % 2, 0, {wrap}(lambda k, a, x: a + x), {wrap}(lambda k, a, x: a + x))\
                 .map(lambda r: (r['key'], r['value'])).sort().run(src)"
            ),
            &["('0', 2)", "('1', 4)"],
            &[],
        );
        gives(
            "1, 2",
            &format!("PR.avg({wrap}(lambda x: float(x))).run(src)"),
            &["1.5"],
            &[],
        );
    }
    // Values that come at once stay behind those that come later.
    gives(
        "0, 1, 2, 3",
        "PR.map(lambda x: later(lambda x: x)(x) if x % 2 == 0 else x).run(src)",
        &["0", "1", "2", "3"],
        &[],
    );
    gives(
        "0, 1, 2, 3",
        "PR.flatmap(lambda x: later(lambda x: [x, x])(x) if x == 0 else [x, -x]).flatmap(later(lambda x: [x, 'b'])).run(src)",
        &[
            "0", "b", "0", "b", "1", "b", "-1", "b", "2", "b", "-2", "b", "3", "b", "-3", "b",
        ],
        &[],
    );
}

#[test]
fn several_steps_wait_at_once() {
    let steps = ".map(later(lambda x: x, lambda x: x % 3 / 100)).filter(later(lambda x: x % 2 == 0, lambda x: x % 5 / 100))\
                 .flatmap(later(lambda x: [x, x + 1])).map(soon(lambda x: x))";
    let wanted: Vec<String> = (0..60)
        .filter(|x| x % 2 == 0)
        .flat_map(|x| [x.to_string(), (x + 1).to_string()])
        .collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    gives("i for i in range(60)", &format!("PR{steps}.run(src)"), &wanted, &[]);
    gives(
        "i for i in range(60)",
        &format!("PR{steps}.accumulate(later(lambda a, x: (a or 0) + x, lambda x: 0)).run(src)"),
        &["1770"],
        &[],
    );
    gives(
        "i for i in range(60)",
        &format!("PR{steps}.limit(3).run(src)"),
        &wanted[..3],
        &[],
    );
    gives(
        "0, 1, 2, 3",
        "PR.accumulate(lambda a, x: (a or 0) + x).map(later(lambda x: x)).flatmap(lambda x: [x] * 3)\
         .map(later(lambda x: x)).run(src)",
        &["6", "6", "6"],
        &[],
    );
}

#[test]
fn errors_are_bare_and_cancel_nobody() {
    let fail = "def two(x):\n    if x == 2: raise ValueError('two')\n    return x\n";
    for wrap in ["later", "soon"] {
        for op in ["map", "flatmap", "foreach"] {
            gives(
                "0, 1, 2, 3, 4",
                &format!("{fail}PR.{op}({wrap}(two)).run(src)"),
                &["0", "1", "3", "4"],
                &["two"],
            );
        }
        gives(
            "1, 2, 3",
            &format!(
                "def f(a, x):\n    if x == 2: raise KeyError('a')\n    return (a or 0) + x\nPR.accumulate({wrap}(f)).run(src)"
            ),
            // What was accumulated is thrown away, and the reader stops.
            &[],
            &["'a'"],
        );
    }
    for (raised, text) in [
        ("SystemExit(3)", "3"),
        ("KeyboardInterrupt()", "KeyboardInterrupt"),
        ("asyncio.CancelledError()", "CancelledError"),
        ("GeneratorExit()", "GeneratorExit"),
        ("StopIteration(1)", "coroutine raised StopIteration"),
        ("flat_error", "name"),
        ("ValueError()", "ValueError"),
    ] {
        if raised == "flat_error" {
            gives(
                "1",
                "PR.map(soon(lambda x: flat_error('ERR mine'))).run(src)",
                &[],
                &["ERR mine"],
            );
            continue;
        }
        let program = format!("def f(x):\n    raise {raised}\nPR.map(soon(f)).run(src)");
        gives("1", &program, &[], &[text]);
    }
    // The loop lives on.
    gives("1", "PR.map(later(lambda x: x)).run(src)", &["1"], &[]);
    check(
        "1",
        "async def f(x): return Bad()\nclass Bad:\n    def __bool__(self): raise ValueError('no bool')\nPR.filter(f).run(src)",
        &[],
        &["ValueError: no bool"],
    );
}

#[test]
fn places_without_coroutines() {
    let co = "async def co(*args): return 1\n";
    for (steps, text) in [
        ("repartition(co)", "coroutine are not allow on extractor"),
        ("countby(co)", "coroutine are not allow on extractor"),
        ("groupby(co, lambda k, a, x: 1)", "coroutine are not allow on extractor"),
        ("batchgroupby(lambda x: x, co)", "coroutine are not allow on reduce"),
    ] {
        gives("1", &format!("{co}PR.{steps}.run(src)"), &[], &[text]);
    }
    for (steps, text) in [
        ("repartition(lambda x: gearsFuture())", "Step does not support async"),
        ("countby(lambda x: gearsFuture())", "Step does not support async"),
        (
            "batchgroupby(lambda x: x, lambda k, l: gearsFuture())",
            "Step does not support async",
        ),
        ("map(lambda x: gearsFuture(1))", "Future gets no arguments"),
        (
            "map(lambda x: (gearsFuture(), gearsFuture()))",
            "Can not create async record twice on the same step",
        ),
    ] {
        check("1", &format!("PR.{steps}.run(src)"), &[], &[text]);
    }
    check(
        "",
        "PR.run(lambda: iter(gearsFuture, None))",
        &[],
        &["Can not create gearsFuture outside of step"],
    );
    gives(
        "1",
        "async def f(x): return gearsFuture()\nPR.map(f).run(src)",
        &[],
        &["Future object can only be created inside certain execution steps"],
    );
    gives(
        "1",
        "async def f(x): return isAsyncAllow()\nPR.map(f).run(src)",
        &["False"],
        &[],
    );
    gives(
        "1",
        "PR.countby(lambda x: isAsyncAllow()).map(lambda r: r['key']).run(src)",
        &["False"],
        &[],
    );
}

#[test]
fn futures_are_completed_from_anywhere() {
    let wait = "def thread(f, *args):\n    def go():\n        time.sleep(0.02)\n        f(*args)\n    Thread(target=go).start()\n";
    gives(
        "1",
        &format!(
            "{wait}def f(x):\n    fut = gearsFuture()\n    thread(fut.continueRun, 'from thread')\n    return fut\nPR.map(f).run(src)"
        ),
        &["from thread"],
        &[],
    );
    gives(
        "1",
        &format!(
            "{wait}def f(x):\n    fut = gearsFuture()\n    thread(fut.continueFailed, 'thread failed')\n    return fut\nPR.map(f).run(src)"
        ),
        &[],
        &["thread failed"],
    );
    gives(
        "1",
        "PR.map(lambda x: gearsFuture()).run(src)",
        &[],
        &["Async record did not called continue"],
    );
    gives(
        "5, 6",
        "def f(x):\n    fut = gearsFuture()\n    return x\nPR.map(f).accumulate(lambda a, x: (gearsFuture(), (a or 0) + x)[1]).run(src)",
        &["11"],
        &[],
    );
    check(
        "1",
        "def f(x):\n    fut = gearsFuture()\n    fut.continueRun(1)\n    return fut\nPR.map(f).run(src)",
        &[],
        &["Can not handle future untill it returned from the callback"],
    );
    check(
        "1",
        "def f(x):\n    fut = gearsFuture()\n    fut.continueFailed()\nPR.map(f).run(src)",
        &[],
        &["Continue function expect an object"],
    );
    let twice = "said = []\ndef go(fut):\n    time.sleep(0.02)\n    fut.continueRun(1)\n    try:\n        fut.continueRun(2)\n    \
                 except Exception as e:\n        said.append(str(e))\n    with open(path, 'w') as f: f.write(str(said))\n\
                 import tempfile, os\npath = os.path.join(tempfile.mkdtemp(), 'said')\n\
                 def f(x):\n    fut = gearsFuture()\n    Thread(target=go, args=(fut,)).start()\n    return fut\n\
                 def g(x):\n    while not os.path.exists(path) or not open(path).read(): time.sleep(0.005)\n    return open(path).read()\n\
                 PR.map(f).map(g).run(src)";
    gives("1", twice, &["['Can not continue with the same future twice']"], &[]);
    // A future that failed in its callback does not spoil the next record.
    check(
        "1, 2",
        "def f(x):\n    fut = gearsFuture()\n    if x == 1: raise KeyError('x')\n    return x\nPR.map(f).run(lambda: src())",
        &[],
        &["KeyError"],
    );
}

#[test]
fn coroutines_and_futures_together() {
    gives(
        "7",
        "async def w(x): return x + 1\ndef f(x):\n    fut = gearsFuture()\n    runCoroutine(w(x), f=fut, delay=0.02)\n    return fut\n\
         PR.map(f).run(src)",
        &["8"],
        &[],
    );
    gives(
        "i for i in range(200)",
        "async def w(x): return x\ndef f(x):\n    fut = gearsFuture()\n    runCoroutine(w(x), f=fut)\n    return fut\n\
         PR.map(f).count().run(src)",
        &["200"],
        &[],
    );
    gives(
        "1",
        "async def w(): raise ValueError('inside')\ndef f(x):\n    fut = gearsFuture()\n    runCoroutine(w(), fut)\n    return fut\n\
         PR.map(f).run(src)",
        &[],
        &["inside"],
    );
    gives(
        "1",
        "async def f(x):\n    fut = createFuture()\n    setFutureResults(fut, 'set')\n    return await fut\nPR.map(f).run(src)",
        &["set"],
        &[],
    );
    for exception in ["'oops'", "Exception('oops')", "ValueError('oops')"] {
        gives(
            "1",
            &format!(
                "async def f(x):\n    fut = createFuture()\n    setFutureException(fut, {exception})\n    return await fut\nPR.map(f).run(src)"
            ),
            &[],
            &["oops"],
        );
    }
    gives(
        "1",
        "async def f(x):\n    try:\n        await asyncio.wait_for(asyncio.sleep(1), 0.02)\n    except asyncio.TimeoutError:\n        \
         return 'timed out'\nPR.map(f).run(src)",
        &["timed out"],
        &[],
    );
    gives(
        "1, 2",
        "async def part(x): return (x, getGearsSession() is not None)\n\
         async def f(x): return await asyncio.gather(part(x), asyncio.create_task(part(-x)))\nPR.map(f).run(src)",
        &["[(1, True), (-1, True)]", "[(2, True), (-2, True)]"],
        &[],
    );
    // What nobody can complete is found by the collector.
    gives(
        "1",
        "async def f(x): return await createFuture()\n\
         def g(x):\n    runCoroutine(collect())\n    return f(x)\n\
         async def collect():\n    for _ in range(20):\n        await asyncio.sleep(0.01)\n        gc.collect()\n\
         PR.map(g).run(src)",
        &[],
        &["Async record did not called continue"],
    );
}

#[test]
fn nothing_is_awaited_in_an_atomic_block() {
    let text = "await is not allow inside atomic block";
    for wait in [
        "await asyncio.sleep(0.01)",
        "await asyncio.sleep(0)",
        "await createFuture()",
        "await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.01))",
    ] {
        let program =
            format!("async def f(x):\n    with atomic():\n        {wait}\n        return 'no'\nPR.map(f).run(src)");
        gives("1", &program, &[], &[text]);
        let program = format!(
            "async def f(x):\n    try:\n        with atomic():\n            {wait}\n    except Exception as e:\n        \
             await asyncio.sleep(0)\n        return (str(e), isInAtomicBlock())\nPR.map(f).run(src)"
        );
        gives(
            "1",
            &program,
            &["('await is not allow inside atomic block', False)"],
            &[],
        );
    }
    gives(
        "1",
        "async def f(x):\n    with atomic():\n        r = execute('ping')\n    await asyncio.sleep(0)\n    return r\nPR.map(f).run(src)",
        &["PONG"],
        &[],
    );
    // However stubborn it is, the lock goes back.
    gives(
        "1",
        "async def f(x):\n    with atomic():\n        for _ in range(300):\n            try:\n                await asyncio.sleep(0)\n            \
         except Exception: pass\n    return 'out'\nPR.map(f).run(src)",
        &[],
        &["Not inside an atomic block"],
    );
    gives(
        "1",
        "async def f(x):\n    atomic().__enter__()\n    return 'left'\nPR.map(f).run(src)",
        &["left"],
        &[],
    );
    on_worker(|| {
        let fake = fake::start();
        assert!(
            // Other tests hold it for moments.
            crate::Server::try_lock(fake, std::time::Duration::from_secs(10), &|| true),
            "a coroutine kept the server lock"
        );
        crate::Server::unlock(fake);
    });
}

#[test]
fn steps_take_rights_along() {
    let script = format!(
        "{HEAD}{}",
        with_source(
            "1, 2",
            "async def child(): return execute('whoami')\n\
             async def f(x):\n    a = execute('whoami')\n    await asyncio.sleep(0.01)\n    \
             return (a, execute('whoami'), await asyncio.create_task(child()))\nPR.map(f).run(src)"
        )
    );
    let outcome = on_worker(move || {
        let request = request(&script).unwrap();
        fake::ACTING.set(Some(Arc::new("alice".to_owned())));
        execute(&request, 1, Vec::new())
    });
    let wanted = "('alice', 'alice', 'alice')";
    assert_eq!(outcome.results, [wanted, wanted], "{:?}", outcome.errors);
    gives(
        "1",
        "async def f(x): return execute('whoami')\nPR.map(f).run(src)",
        &["all"],
        &[],
    );
}

#[test]
fn a_thousand_wait_at_most() {
    let script = format!(
        "{HEAD}{}",
        with_source(
            "i for i in range(2500)",
            "now = most = 0\nasync def f(x):\n    global now, most\n    now += 1\n    most = max(most, now)\n    \
             await asyncio.sleep(0.05)\n    now -= 1\n    return x\n\
             PR.map(f).accumulate(lambda a, x: (a or 0) + 1).map(lambda n: (n, most)).run(src)"
        )
    );
    let outcome = run(&script);
    let most: usize = outcome.results[0]
        .trim_matches(['(', ')'])
        .strip_prefix("2500, ")
        .unwrap_or_else(|| panic!("{outcome:?}"))
        .parse()
        .unwrap();
    assert!((500..=1000).contains(&most), "{most} coroutines ran at once");
    gives(
        "i for i in range(50)",
        "now = most = 0\nasync def f(a, x):\n    global now, most\n    now += 1\n    most = max(most, now)\n    \
         await asyncio.sleep(0)\n    now -= 1\n    return (a or 0) + 1\nPR.accumulate(f).map(lambda n: (n, most)).run(src)",
        &["(50, 1)"],
        &[],
    );
}

/// Drops a stage while its coroutines run.
#[test]
fn what_is_dropped_is_cancelled() {
    let script = format!(
        "{HEAD}{}",
        with_source(
            "1, 2, 3",
            "async def f(x):\n    execute('incr', 'begun')\n    try:\n        await asyncio.sleep(60)\n    \
             except asyncio.CancelledError:\n        execute('incr', 'cancelled')\n        raise\nPR.map(f).run(src)"
        )
    );
    on_worker(move || {
        let fake = fake::start();
        let request = request(&script).unwrap();
        let stages = request.plan.stages(false);
        let mut runners = compile(&request.plan, &stages, &request.functions, context(1, 0)).unwrap();
        let mut sink = LoopSink::new(1, true);
        assert_eq!(runners[0].run(&mut sink), RunState::Waiting);
        assert!(runners[0].is_pending());
        let count = |key: &str| crate::Server::execute(fake, &[b"get".to_vec(), key.as_bytes().to_vec()]).unwrap();
        let reaches = |key: &str| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while count(key).bytes() != Some(b"3") {
                assert!(Instant::now() < deadline, "{key}: {:?}", count(key));
                thread::sleep(Duration::from_millis(2));
            }
        };
        reaches("begun");
        drop(runners);
        reaches("cancelled");
    });
}

/// A coroutine that does not let go of the loop is named in the log, and ends with its execution.
#[test]
fn who_blocks_the_loop_is_named_and_can_be_stopped() {
    let script = format!(
        "{HEAD}{}",
        with_source("1", "async def f(x):\n    while True: pass\nPR.map(f).run(src)")
    );
    on_worker(move || {
        let fake = fake::start();
        let session = Session::create("the-blocking-one", None).unwrap();
        let request = run_script(&session, script.as_bytes()).unwrap().run.unwrap();
        let stages = request.plan.stages(false);
        let mut runners = compile(&request.plan, &stages, &request.functions, context(1, 0)).unwrap();
        let mut sink = LoopSink::new(1, true);
        assert_eq!(runners[0].run(&mut sink), RunState::Waiting);
        let says = |part: &str| {
            let deadline = Instant::now() + Duration::from_secs(30);
            let found = || {
                fake.log
                    .lock()
                    .iter()
                    .any(|(_, text)| text.contains(part) && text.contains("the-blocking-one"))
            };
            while !found() {
                assert!(Instant::now() < deadline, "no line {part}");
                thread::sleep(Duration::from_millis(5));
            }
        };
        says("has kept the event loop busy");
        drop(runners);
        says("has let the event loop go");
    });
    gives("1", "PR.map(later(lambda x: x)).run(src)", &["1"], &[]);
}

#[test]
fn runs_are_awaited() {
    let script = format!(
        "{HEAD}async def f(x):\n    a = GB('ShardsIDReader').run(convertToStr=False)\n    b = GB('ShardsIDReader').count().run()\n    \
         return [await a, await b]\nGB('PythonReader').map(f).run(lambda: iter([1]))"
    );
    let outcome = on_worker(move || {
        let fake = fake::start();
        let mine = |request: &RunRequest| request.session.id() == "awaits-runs";
        let session = Session::create("awaits-runs", None).unwrap();
        let request = run_script(&session, script.as_bytes()).unwrap().run.unwrap();
        // Plays the engine for the two runs inside.
        let player = thread::spawn(move || {
            let mut played = 0;
            let deadline = Instant::now() + Duration::from_secs(30);
            while played < 2 {
                assert!(Instant::now() < deadline, "no run is asked for");
                let at = fake.started.lock().iter().position(mine);
                if let Some(at) = at {
                    fake.started.lock().remove(at);
                    let when_over = fake.waiting.lock().remove(at);
                    let mut bytes = Vec::new();
                    oxigears_coordinator::codec::put_int(&mut bytes, played);
                    when_over(crate::RunOver {
                        outcome: oxigears_coordinator::execution::Outcome {
                            results: [RecordBatch {
                                bytes: bytes.into(),
                                records: 1,
                            }]
                            .into(),
                            errors: vec!["one failed".into()],
                            ..Default::default()
                        },
                        aborted: false,
                    });
                    played += 1;
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let outcome = execute(&request, 1, Vec::new());
        player.join().unwrap();
        outcome
    });
    assert_eq!(
        outcome.results,
        ["[[[0], ['one failed']], [[1], ['one failed']]]"],
        "{:?}",
        outcome.errors
    );
}

/// What a call postpones goes on elsewhere; where nobody can wait it fails.
#[test]
fn sync_calls_go_on_later() {
    let script = format!(
        "{HEAD}def pick(x): return later(lambda x: 'slow')(x) if isAsyncAllow() else 'fast'\n\
         GB('CommandReader').map(later(lambda x: x[1:])).register(trigger='a', mode='sync')\n\
         GB('CommandReader').flatmap(lambda x: x[1:]).map(later(lambda x: x)).accumulate(later(lambda a, x: (a or '') + x))\
         .map(later(lambda x: x)).register(trigger='b', mode='sync')\n\
         GB('CommandReader').map(pick).register(trigger='c', mode='sync')\n\
         GB('CommandReader').map(lambda x: gearsFuture()).register(trigger='d', mode='sync')\n\
         GB('CommandReader').flatmap(lambda x: [later(lambda x: x)(1), bad, 2]).register(trigger='e', mode='sync')"
    );
    on_worker(move || {
        let drafts = register(&script);
        let invokers: Vec<Invoker> = drafts.iter().map(invoker).collect();
        let session = &drafts[0].session;
        for _ in 0..3 {
            assert_eq!(invoke(&invokers[0], session, &[b"a", b"x"]).results, ["['x']"]);
            assert_eq!(invoke(&invokers[1], session, &[b"b", b"x", b"y"]).results, ["xy"]);
            assert_eq!(invoke(&invokers[1], session, &[b"b"]).results, [""; 0]);
            assert_eq!(invoke(&invokers[2], session, &[b"c"]).results, ["slow"]);
            assert_eq!(
                invoke(&invokers[3], session, &[b"d"]).errors,
                ["Async record did not called continue"]
            );
        }
        let at_once = |number: usize| {
            let called = invokers[number].call(&[b"t".to_vec()], Some(Arc::new(crate::AtOnce)));
            match called {
                Invoked::Done(outcome) => outcome,
                Invoked::Continues(_) => panic!("postponed"),
            }
        };
        assert_eq!(at_once(0).errors, ["Creating async record is not allowed"]);
        assert!(at_once(3).errors[0].contains("Creating async record is not allowed"));
        assert_eq!(show(&at_once(2).results[0], session), ["fast"]);
        // Dropped without being gone on with.
        drop(invokers[0].call(&[b"t".to_vec(), b"x".to_vec()], None));
        assert_eq!(invoke(&invokers[0], session, &[b"a", b"y"]).results, ["['y']"]);
    });
}
