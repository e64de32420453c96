//! Values keep their types and contents across the codec.

use oxigears_coordinator::codec::{Cursor, RecordBatch, put_bytes, put_head, put_tagged, tag};
use pyo3::types::PyDict;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::codec::{DecodeError, Encoder};

/// Encodes and decodes the value of a Python expression; gives the bytes and the `repr` of what came back.
fn round_trip(py: Python<'_>, session: &Session, value: &Bound<'_, PyAny>) -> (Vec<u8>, Py<PyAny>) {
    let globals = session.globals().as_ptr();
    let mut bytes = Vec::new();
    // SAFETY: the GIL is held; the session is alive.
    unsafe {
        let encoder = Encoder {
            globals,
            is_result: false,
            opaque: false,
            kept: std::ptr::null(),
        };
        if encoder.encode(&mut bytes, value.as_ptr()).is_err() {
            panic!("{}", PyErr::fetch(py));
        }
        RecordBatch {
            bytes: bytes.clone().into(),
            records: 1,
        }
        .check()
        .unwrap();
        let mut cursor = Cursor::new(&bytes);
        match (Decoder {
            globals,
            kept: std::ptr::null(),
        })
        .next(&mut cursor)
        {
            Ok(back) => {
                assert!(cursor.is_empty());
                let back = Bound::from_owned_ptr(py, back.into_ptr()).unbind();
                (bytes, back)
            }
            Err(DecodeError::Python) => panic!("{}", PyErr::fetch(py)),
            Err(DecodeError::Codec(e)) => panic!("{e}"),
        }
    }
}

fn evaluate<'py>(py: Python<'py>, session: &Session, code: &str) -> Bound<'py, PyAny> {
    let globals = session.globals().bind(py);
    let code = std::ffi::CString::new(code).unwrap();
    py.eval(&code, Some(globals), None)
        .unwrap_or_else(|e| panic!("{code:?}: {e}"))
}

/// Values of each type, with the tag that they get.
#[test]
fn every_type_comes_back_as_itself() {
    on_worker(|| {
        let session = Session::create("codec", None).unwrap();
        run_script(
            &session,
            b"import re, decimal, collections\nclass S(str): pass\nclass D(dict): pass",
        )
        .unwrap();
        Python::attach(|py| {
            for (code, first) in [
                ("None", tag::NONE),
                ("True", tag::TRUE),
                ("False", tag::FALSE),
                ("0", tag::INT),
                ("-2**63", tag::INT),
                ("2**63", tag::BIG_INT),
                ("-2**63 - 1", tag::BIG_INT),
                ("2**64 - 1", tag::BIG_INT),
                ("-2**1000", tag::BIG_INT),
                ("255**100", tag::BIG_INT),
                ("1.5", tag::FLOAT),
                ("float('-inf')", tag::FLOAT),
                ("1+2j", tag::COMPLEX),
                ("'abc'", tag::STR),
                ("'a\\0é日😀'", tag::STR),
                ("'\\ud800x'", tag::STR),
                ("b'\\xff\\0'", tag::BYTES),
                ("bytearray(b'x')", tag::BYTE_ARRAY),
                ("[1, [2, 'x'], []]", tag::LIST),
                ("(1, ('a',), ())", tag::TUPLE),
                ("{'a': 1, (1, 2): [3], None: {}}", tag::DICT),
                ("{'key': 'k', 'value': 1, b'b': 2}", tag::DICT),
                ("{1, 'a', None}", tag::SET),
                ("frozenset([1, frozenset()])", tag::FROZEN_SET),
                ("S('x')", tag::PICKLE),
                ("D(a=1)", tag::PICKLE),
                ("decimal.Decimal('1.10')", tag::PICKLE),
                ("re.compile('a')", tag::PICKLE),
                ("collections.OrderedDict(a=1)", tag::PICKLE),
                ("[decimal.Decimal(1), 2]", tag::LIST),
                (
                    "{'event': None, 'key': 'k', 'type': 'string', 'value': 'v'}",
                    tag::KEY_RECORD,
                ),
                (
                    "{'event': None, 'key': 'k', 'type': 'hash', 'value': {'f': ['x']}}",
                    tag::KEY_RECORD,
                ),
                (
                    "{'event': 'set', 'key': 'k', 'type': 'string', 'value': 'v'}",
                    tag::DICT,
                ),
                (
                    "{'event': None, 'key': b'k', 'type': 'string', 'value': 'v'}",
                    tag::DICT,
                ),
                (
                    "{'event': None, 'key': '\\ud800', 'type': 'string', 'value': 'v'}",
                    tag::DICT,
                ),
                ("{'event': None, 'key': 'k', 'type': 'other', 'value': 'v'}", tag::DICT),
                ("{'event': None, 'type': 'string', 'key': 'k', 'value': 'v'}", tag::DICT),
            ] {
                let value = evaluate(py, &session, code);
                let (bytes, back) = round_trip(py, &session, &value);
                assert_eq!(bytes[0], first, "{code}");
                let back = back.bind(py);
                assert!(back.eq(&value).unwrap(), "{code}: {back}");
                assert!(back.get_type().is(value.get_type()), "{code}: {}", back.get_type());
                assert_eq!(
                    back.repr().unwrap().to_string_lossy().len(),
                    value.repr().unwrap().to_string_lossy().len()
                );
            }
        });
    });
}

/// A random value as Python source.
fn random_source(random: &mut StdRng, depth: usize) -> String {
    let kinds = if depth == 0 { 7 } else { 11 };
    let many =
        |random: &mut StdRng, n: usize| -> Vec<String> { (0..n).map(|_| random_source(random, depth - 1)).collect() };
    let n = random.random_range(0..4);
    match random.random_range(0..kinds) {
        0 => "None".into(),
        1 => ["True", "False"][random.random_range(0..2)].into(),
        2 => format!("{}", random.random::<i64>() >> random.random_range(0..64)),
        3 => format!("{} ** {}", random.random_range(-9..10), random.random_range(0..90)),
        4 => format!("{:e}", random.random::<f64>() * 1e9),
        5 => format!(
            "{:?}",
            "aé\u{1F600}'\\ "[..].chars().cycle().take(n * 3).collect::<String>()
        )
        .replace("\\u{", "\\N{"),
        6 => format!("bytes({:?})", (0..n).map(|_| random.random::<u8>()).collect::<Vec<_>>()),
        7 => format!("[{}]", many(random, n).join(", ")),
        8 => format!(
            "({})",
            many(random, n).iter().map(|v| format!("{v}, ")).collect::<String>()
        ),
        9 => {
            let values = many(random, n);
            let pairs: Vec<_> = values
                .iter()
                .enumerate()
                .map(|(i, v)| format!("{i}: {v}, '{i}': {v}"))
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        _ => format!("frozenset([{}, 'x'])", random.random_range(0..9)),
    }
}

#[test]
fn random_values_survive() {
    on_worker(|| {
        let session = Session::create("codec", None).unwrap();
        for seed in 0..300 {
            let source = random_source(&mut StdRng::seed_from_u64(seed), 4);
            Python::attach(|py| {
                let value = evaluate(py, &session, &source);
                let (_, back) = round_trip(py, &session, &value);
                let (back, value) = (back.bind(py).repr().unwrap(), value.repr().unwrap());
                // Sets have no order: equal texts are not promised, equal lengths are.
                assert_eq!(
                    back.to_string_lossy().len(),
                    value.to_string_lossy().len(),
                    "seed {seed}: {source}"
                );
            });
        }
    });
}

#[test]
fn readers_records_become_the_dicts_of_the_interface() {
    let mut bytes = Vec::new();
    bytes.push(tag::KEY_RECORD);
    put_bytes(&mut bytes, b"k1");
    bytes.push(1);
    put_tagged(&mut bytes, tag::TEXT, b"text");
    bytes.push(tag::KEY_RECORD);
    put_bytes(&mut bytes, b"k\xff");
    bytes.push(3);
    put_head(&mut bytes, tag::DICT, 2);
    put_tagged(&mut bytes, tag::TEXT_KEY, b"f\xfe");
    put_tagged(&mut bytes, tag::TEXT, b"v\xfe");
    put_tagged(&mut bytes, tag::TEXT_KEY, b"g");
    put_tagged(&mut bytes, tag::TEXT, b"w");
    bytes.push(tag::KEY_RECORD);
    put_bytes(&mut bytes, b"none");
    bytes.extend([0, tag::NONE, tag::KEY_NAME_RECORD]);
    put_bytes(&mut bytes, b"only");
    bytes.push(tag::STREAM_RECORD);
    put_bytes(&mut bytes, b"st");
    put_bytes(&mut bytes, b"1-1");
    put_head(&mut bytes, tag::DICT, 0);
    let batch = RecordBatch {
        bytes: bytes.into(),
        records: 5,
    };
    let outcome = on_worker(move || execute(&request("GB().run()").unwrap(), 1, vec![batch]));
    assert_eq!(outcome.errors, [""; 0]);
    assert_eq!(
        outcome.results,
        [
            "{'event': None, 'key': 'k1', 'type': 'string', 'value': 'text'}",
            "{'event': None, 'key': bytearray(b'k\\xff'), 'type': 'hash', 'value': {b'f\\xfe': bytearray(b'v\\xfe'), 'g': 'w'}}",
            "{'event': None, 'key': 'none', 'type': 'empty', 'value': None}",
            "{'event': None, 'key': 'only'}",
            "{'key': 'st', 'id': '1-1', 'value': {}}",
        ]
    );
}

#[test]
fn deep_and_cyclic_values_are_pickled_or_refused() {
    let nest = "def nest(n):\n    x = []\n    for _ in range(n):\n        x = [x]\n    return x\n";
    let script = |expression: &str| {
        with_source(
            expression,
            "PR.repartition(lambda x: 'k').map(lambda x: type(x).__name__).run(src)",
        )
        .replace("def src", &format!("{nest}cycle = []\ncycle.append(cycle)\ndef src"))
    };
    let run = |expression: &str| {
        let script = script(expression);
        on_worker(move || {
            fake::SHARDS.with(|s| s.set(2));
            execute(&request(&script).unwrap(), 2, Vec::new())
        })
    };
    for value in ["nest(63)", "nest(64)", "nest(65)", "nest(200)", "cycle"] {
        assert_eq!(
            run(value),
            Outcome {
                results: vec!["list".into(); 2],
                errors: vec![]
            },
            "{value}"
        );
    }
    // One of the two records stays on its shard, which takes no pickling.
    let deep = run("nest(100000)");
    assert_eq!((deep.results.len(), deep.errors.len()), (1, 1));
    assert!(deep.errors[0].contains("recursion"), "{}", deep.errors[0]);
}

/// Every way to cut or bend a batch is an error record, and the good records before it survive.
#[test]
fn bent_batches_are_error_records() {
    let mut bytes = Vec::new();
    put_tagged(&mut bytes, tag::STR, b"good");
    let good = bytes.len();
    put_head(&mut bytes, tag::LIST, 2);
    put_tagged(&mut bytes, tag::TEXT, b"v");
    put_tagged(&mut bytes, tag::PICKLE, b"\x80\x05junk");
    on_worker(move || {
        let request = request("GB().run()").unwrap();
        let run = |bytes: &[u8], records| {
            execute(
                &request,
                1,
                vec![RecordBatch {
                    bytes: bytes.to_vec().into(),
                    records,
                }],
            )
        };
        for cut in good..bytes.len() {
            let outcome = run(&bytes[..cut], 2);
            assert_eq!(outcome.results, ["good"], "cut at {cut}");
            assert_eq!(outcome.errors.len(), 1, "cut at {cut}");
        }
        let mut bent = bytes.clone();
        bent.extend_from_slice(&bytes[..good]);
        // The initiator's reader stops at its first error.
        let outcome = run(&bent, 3);
        assert_eq!((outcome.results.len(), outcome.errors.len()), (1, 1));
        assert!(outcome.errors[0].contains("pickle"), "{:?}", outcome.errors);
        for odd in [
            &[99u8][..],
            &[tag::KEYED, 0, tag::NONE],
            &[tag::SET, 1, tag::LIST, 0],
            &[tag::DICT, 1, tag::LIST, 0, 0],
        ] {
            let outcome = run(odd, 1);
            assert_eq!((outcome.results.len(), outcome.errors.len()), (0, 1), "{odd:?}");
        }
    });
}

#[test]
fn containers_that_change_while_they_are_written_are_errors() {
    let script = with_source(
        "1",
        "class Evil:\n    def __init__(self, box): self.box = box\n    def __reduce__(self):\n        \
         self.box.append(1)\n        return (int, ())\n\
         def fill(x):\n    box = []\n    box.append(Evil(box))\n    return box\n\
         PR.map(fill).repartition(lambda x: 'k').run(src)",
    );
    let outcome = on_worker(move || {
        fake::SHARDS.with(|s| s.set(2));
        execute(&request(&script).unwrap(), 2, Vec::new())
    });
    // One of the two records stays on its shard, which takes no pickling.
    assert_eq!((outcome.results.len(), outcome.errors.len()), (1, 1));
    assert!(outcome.errors[0].contains("changed its size"), "{:?}", outcome.errors);
}

#[test]
fn a_dict_of_ours_is_a_plain_dict() {
    on_worker(|| {
        let session = Session::create("codec", None).unwrap();
        Python::attach(|py| {
            let value = evaluate(py, &session, "{'event': None, 'key': 'k', 'type': 'list', 'value': []}");
            let (_, back) = round_trip(py, &session, &value);
            let back = back.bind(py).cast::<PyDict>().unwrap().clone();
            back.set_item("more", 1).unwrap();
            // The template that records are copied from stays as it is.
            let (_, again) = round_trip(py, &session, &value);
            assert_eq!(again.bind(py).len().unwrap(), 4);
        });
    });
}
