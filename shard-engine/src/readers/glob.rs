//! Patterns of key names, as KEYS and SCAN understand them: `*`, `?`, `[a-c]`, `[^x]`, backslash. On bytes.
//!
//! Matching takes at most the product of both lengths, whatever the pattern.

use std::ffi::c_char;

/// A compiled pattern.
#[derive(Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Every name.
    Everything,
    /// One name: the pattern has no special characters.
    Exact(Vec<u8>),
    /// Names that begin so.
    Prefix(Vec<u8>),
    /// Anything else.
    Glob(Glob),
}

/// Tokens of a pattern.
#[derive(Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    AnyByte,
    AnyBytes,
    /// One bit for each byte that fits.
    Class(Box<[u64; 4]>),
}

impl Pattern {
    /// Compiles a pattern; every text is one.
    pub fn compile(pattern: &[u8]) -> Pattern {
        let mut tokens = tokens(pattern);
        let literal = |tokens: &[Token]| -> Option<Vec<u8>> {
            tokens
                .iter()
                .map(|t| if let Token::Byte(b) = t { Some(*b) } else { None })
                .collect()
        };
        if tokens == [Token::AnyBytes] {
            return Pattern::Everything;
        }
        if let Some(name) = literal(&tokens) {
            return Pattern::Exact(name);
        }
        if tokens.last() == Some(&Token::AnyBytes)
            && let Some(prefix) = literal(&tokens[..tokens.len() - 1])
        {
            return Pattern::Prefix(prefix);
        }
        tokens.shrink_to_fit();
        Pattern::Glob(Glob(tokens))
    }

    /// `name` fits.
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Pattern::Everything => true,
            Pattern::Exact(exact) => name == exact,
            Pattern::Prefix(prefix) => name.starts_with(prefix),
            Pattern::Glob(glob) => glob.matches(name),
        }
    }
}

impl Glob {
    /// When a byte does not fit, only the last `*` can take one more: those before it have nothing to gain.
    fn matches(&self, name: &[u8]) -> bool {
        let (mut token, mut at) = (0, 0);
        let mut last_star: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.0.get(token) {
                Some(Token::AnyBytes) => {
                    token += 1;
                    last_star = Some((token, at));
                }
                Some(one) if one.fits(name[at]) => {
                    token += 1;
                    at += 1;
                }
                _ => match &mut last_star {
                    None => return false,
                    Some((after, taken)) => {
                        *taken += 1;
                        token = *after;
                        at = *taken;
                    }
                },
            }
        }
        self.0[token..].iter().all(|t| *t == Token::AnyBytes)
    }
}

impl Token {
    fn fits(&self, byte: u8) -> bool {
        match self {
            Token::Byte(b) => *b == byte,
            Token::AnyByte => true,
            Token::AnyBytes => false,
            Token::Class(bits) => bits[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1,
        }
    }
}

fn tokens(pattern: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        tokens.push(match first {
            b'*' => {
                if tokens.last() == Some(&Token::AnyBytes) {
                    continue;
                }
                Token::AnyBytes
            }
            b'?' => Token::AnyByte,
            b'[' => {
                let (class, after) = class(rest);
                rest = after;
                class
            }
            // A backslash at the very end stands for itself.
            b'\\' if !rest.is_empty() => {
                let escaped = rest[0];
                rest = &rest[1..];
                Token::Byte(escaped)
            }
            byte => Token::Byte(byte),
        });
    }
    tokens
}

/// Reads a class behind its `[`. One without `]` ends with the pattern.
fn class(mut rest: &[u8]) -> (Token, &[u8]) {
    let mut bits = [0u64; 4];
    let negated = rest.first() == Some(&b'^');
    if negated {
        rest = &rest[1..];
    }
    // The server compares C's `char`, which has a sign on some machines.
    let mut add = |from: u8, to: u8| {
        let (from, to) = (from as c_char, to as c_char);
        let range = from.min(to)..=from.max(to);
        for byte in (0..=u8::MAX).filter(|&byte| range.contains(&(byte as c_char))) {
            bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
    };
    loop {
        match rest {
            [] => break,
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [b'\\', escaped, after @ ..] => {
                add(*escaped, *escaped);
                rest = after;
            }
            [from, b'-', to, after @ ..] => {
                add(*from, *to);
                rest = after;
            }
            [byte, after @ ..] => {
                add(*byte, *byte);
                rest = after;
            }
        }
    }
    if negated {
        bits.iter_mut().for_each(|word| *word = !*word);
    }
    (Token::Class(Box::new(bits)), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, fits: &[&str], not: &[&str]) {
        let compiled = Pattern::compile(pattern.as_bytes());
        for name in fits {
            assert!(compiled.matches(name.as_bytes()), "{pattern} should fit {name}");
        }
        for name in not {
            assert!(!compiled.matches(name.as_bytes()), "{pattern} should not fit {name}");
        }
    }

    #[test]
    fn patterns_fit_as_in_the_server() {
        check("*", &["", "a", "a*"], &[]);
        check("h?llo", &["hello", "hallo", "h?llo"], &["hllo", "heello"]);
        check("h*llo", &["hllo", "heeeello"], &["hell", "hello!"]);
        check("h[ae]llo", &["hello", "hallo"], &["hillo", "h[ae]llo"]);
        check("h[^e]llo", &["hallo", "hbllo"], &["hello"]);
        check("h[a-b]llo", &["hallo", "hbllo"], &["hcllo", "h-llo"]);
        check("h[b-a]llo", &["hallo", "hbllo"], &["hcllo"]);
        check("h\\*llo", &["h*llo"], &["hello", "h\\*llo"]);
        check("h[\\]-]llo", &["h]llo", "h-llo"], &["h\\llo"]);
        check("a*b*c", &["abc", "aXbYc", "abbcc"], &["acb", "abcd"]);
        check("user:*", &["user:", "user:1"], &["user", "xuser:1"]);
        check("*:tail", &[":tail", "a:tail"], &["a:tail2"]);
        check("a**", &["a", "ab"], &["b"]);
        check("a?*", &["ab", "abc"], &["a"]);
        check("ab[", &[], &["ab", "ab[", "abc"]);
        check("ab[cd", &["abc", "abd"], &["ab", "abcd"]);
        check("a[^]b", &["axb"], &["ab"]);
        check("a[]b", &[], &["ab", "axb"]);
        check("a\\", &["a\\"], &["a"]);
        check("plain", &["plain"], &["plain2", "plai"]);
        check("", &[""], &["a"]);
    }

    #[test]
    fn simple_patterns_are_recognised() {
        assert_eq!(Pattern::compile(b"***"), Pattern::Everything);
        assert_eq!(Pattern::compile(b"a\\*b"), Pattern::Exact(b"a*b".to_vec()));
        assert_eq!(Pattern::compile(b"a\\*b*"), Pattern::Prefix(b"a*b".to_vec()));
        assert!(matches!(Pattern::compile(b"a*b"), Pattern::Glob(_)));
    }

    #[test]
    fn bytes_need_not_be_text() {
        let pattern = Pattern::compile(b"\xff[\x80-\x90]?\x00*");
        assert!(pattern.matches(b"\xff\x85\xc3\x00rest"));
        assert!(!pattern.matches(b"\xff\x95\xc3\x00rest"));
    }

    #[test]
    fn many_stars_do_not_explode() {
        let pattern = Pattern::compile("a*".repeat(200).as_bytes());
        let glob = Pattern::compile(("a*".repeat(200) + "b").as_bytes());
        let name = vec![b'a'; 20_000];
        assert!(pattern.matches(&name));
        assert!(!glob.matches(&name));
    }
}
