//! Paths with parameters: `/stock/{id}`. The template names the operation.
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All characters except the unreserved ones of RFC 3986, 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Replaces the parameters of `template`. A parameter that begins with a star (`{*path}`) may contain slashes.
///
/// Refuses arguments that would change the path's meaning: empty and dot segments.
pub(super) fn fill(template: &str, params: &[(String, String)]) -> Result<String, String> {
    if !template.starts_with('/') {
        return Err(format!("`{template}` is no path; it begins with a slash"));
    }
    if let Some(at) = template.bytes().position(|byte| matches!(byte, b'?' | b'#')) {
        return Err(format!("`{}` is no part of a path; write a query with `query`", &template[at..]));
    }
    let mut path = String::with_capacity(template.len() + 16);
    let mut used = 0;
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once('{') {
        let (hole, after) =
            after.split_once('}').ok_or_else(|| format!("`{template}` has a brace that does not close"))?;
        path.push_str(literal);
        let name = hole.trim_start_matches('*');
        let (_, value) = params
            .iter()
            .find(|(given, _)| given == name)
            .ok_or_else(|| format!("`{template}` needs the parameter `{name}`"))?;
        push(&mut path, value, hole.starts_with('*'))
            .map_err(|what| format!("the parameter `{name}` of `{template}` is {what}"))?;
        used += 1;
        rest = after;
    }
    path.push_str(rest);
    if used < params.len() {
        let known = |name: &str| {
            template.contains(&format!("{{{name}}}")) || template.contains(&format!("{{*{name}}}"))
        };
        return Err(match params.iter().find(|(name, _)| !known(name)) {
            Some((name, _)) => format!("`{template}` has no parameter `{name}`"),
            None => format!("a parameter of `{template}` is given twice"),
        });
    }
    Ok(path)
}

/// Adds `key=value` to a query, which begins with a question mark.
pub(super) fn query(path: &mut String, key: &str, value: &str) {
    path.push(if path.contains('?') { '&' } else { '?' });
    encode(path, key);
    path.push('=');
    encode(path, value);
}

fn push(path: &mut String, value: &str, slashes: bool) -> Result<(), &'static str> {
    let segments = value.split('/').filter(|_| slashes);
    for (i, segment) in segments.chain((!slashes).then_some(value)).enumerate() {
        match segment {
            "" => return Err("empty"),
            "." | ".." => return Err("a dot segment, which leads elsewhere"),
            segment => {
                if i > 0 {
                    path.push('/');
                }
                encode(path, segment);
            }
        }
    }
    Ok(())
}

fn encode(to: &mut String, text: &str) {
    to.extend(utf8_percent_encode(text, RESERVED));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, params: &[(&str, &str)], expected: Result<&str, &str>) {
        let params: Vec<_> = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let got = fill(template, &params);
        assert_eq!(got.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn fills_holes() {
        check("/stock", &[], Ok("/stock"));
        check("/stock/{id}/parts/{part}", &[("part", "b"), ("id", "42")], Ok("/stock/42/parts/b"));
        check("/stock/{id}", &[("id", "a/b c?ä%2F")], Ok("/stock/a%2Fb%20c%3F%C3%A4%252F"));
        check("/files/{*path}", &[("path", "a/b c/d")], Ok("/files/a/b%20c/d"));
    }

    #[test]
    fn says_what_is_wrong() {
        check("stock", &[], Err("`stock` is no path; it begins with a slash"));
        check("/stock?all=1", &[], Err("`?all=1` is no part of a path; write a query with `query`"));
        check("/stock/{id", &[("id", "1")], Err("`/stock/{id` has a brace that does not close"));
        check("/stock/{id}", &[], Err("`/stock/{id}` needs the parameter `id`"));
        check("/stock", &[("id", "1")], Err("`/stock` has no parameter `id`"));
        check("/a/{id}", &[("id", "1"), ("id", "2")], Err("a parameter of `/a/{id}` is given twice"));
        check("/stock/{id}", &[("id", "")], Err("the parameter `id` of `/stock/{id}` is empty"));
        let dots = "the parameter `p` of `/{*p}` is a dot segment, which leads elsewhere";
        check("/{*p}", &[("p", "a/../b")], Err(dots));
    }

    #[test]
    fn encodes_queries() {
        let mut path = String::from("/stock");
        query(&mut path, "q", "a&b=c d");
        query(&mut path, "sort", "name");
        assert_eq!(path, "/stock?q=a%26b%3Dc%20d&sort=name");
    }
}
