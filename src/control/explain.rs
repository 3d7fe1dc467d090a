//! An error and its causes in one line, each said once.
//!
//! Many errors name their cause in their own text; anyhow's alternate format would say it again.

/// The error and its causes, outermost first.
#[must_use]
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::explain;

    #[test]
    fn each_cause_stands_once_in_one_line() {
        let error = std::io::Error::other("no\nroom");
        let text = format!("cannot open x: {}; make room", "no room");
        let error = Err::<(), _>(error)
            .context(text)
            .context("tap:eth0")
            .unwrap_err();
        let wanted = "tap:eth0: cannot open x: no room; make room";
        assert_eq!(explain(&error), wanted);
    }
}
