//! The options of RG.PYEXECUTE, checked in the order that clients know.

/// What a client asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// Answer with the execution id at once.
    pub unblocking: bool,
    /// Session name.
    pub id: Option<String>,
    /// Free text of the session.
    pub description: Option<String>,
    /// Replace the session of this name if it exists.
    pub upgrade: bool,
    /// Replace this session.
    pub replace_with: Option<String>,
    /// Install requirements again.
    pub force_reinstall: bool,
    /// pip requirement specifiers.
    pub requirements: Vec<String>,
}

/// Reads the arguments behind the script.
pub fn parse(args: &[Vec<u8>]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut rest = args.iter();
    // A missing value counts before a bad name, that before an unknown word.
    let mut bad_name = false;
    let mut unknown = None;
    while let Some(word) = rest.next() {
        let mut value = |name: &str| {
            let bytes = rest.next().ok_or(format!("{name} is missing"))?;
            Ok::<_, String>(String::from_utf8_lossy(bytes).into_owned())
        };
        match word.to_ascii_uppercase().as_slice() {
            b"UNBLOCKING" => options.unblocking = true,
            b"UPGRADE" => options.upgrade = true,
            b"FORCE_REINSTALL_REQUIREMENTS" => options.force_reinstall = true,
            b"DESCRIPTION" => options.description = Some(value("DESCRIPTION")?),
            b"REPLACE_WITH" => options.replace_with = Some(value("REPLACE_WITH")?),
            b"ID" => {
                let id = value("ID")?;
                bad_name = !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                options.id = Some(id);
            }
            b"REQUIREMENTS" => {
                options.requirements = rest.map(|r| String::from_utf8_lossy(r).into_owned()).collect();
                break;
            }
            _ => {
                unknown = Some(String::from_utf8_lossy(word));
                break;
            }
        }
    }
    if bad_name {
        return Err("ID must be compose of: ['A'-'Z' | 'a'-'z' | '0' - '9' | '-' | '_']".into());
    }
    if let Some(word) = unknown {
        return Err(format!("Unknown arguments were given: {word}"));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<Options, &str>) {
        let args: Vec<Vec<u8>> = line.split_whitespace().map(|w| w.as_bytes().to_vec()).collect();
        assert_eq!(parse(&args), expected.map_err(str::to_owned), "{line}");
    }

    #[test]
    fn options_in_any_order_last_one_wins() {
        check("", Ok(Options::default()));
        let id = |id: &str| Some(id.to_owned());
        check(
            "unblocking ID a id b",
            Ok(Options {
                unblocking: true,
                id: id("b"),
                ..Options::default()
            }),
        );
        check(
            "UPGRADE REPLACE_WITH x/y requirements redis UNBLOCKING",
            Ok(Options {
                upgrade: true,
                replace_with: id("x/y"),
                requirements: vec!["redis".into(), "UNBLOCKING".into()],
                ..Options::default()
            }),
        );
        check("REQUIREMENTS", Ok(Options::default()));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        check("ID", Err("ID is missing"));
        check("DESCRIPTION", Err("DESCRIPTION is missing"));
        check("REPLACE_WITH", Err("REPLACE_WITH is missing"));
        check(
            "ID a/b",
            Err("ID must be compose of: ['A'-'Z' | 'a'-'z' | '0' - '9' | '-' | '_']"),
        );
        check("ID a/b DESCRIPTION", Err("DESCRIPTION is missing"));
        check("UNBLOCKING nonsense", Err("Unknown arguments were given: nonsense"));
    }
}
