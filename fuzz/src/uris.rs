//! URIs.

use crate::options::ConnectionOptions;

/// Replaces the words of the password, so that no other part of a text can be equal to it.
const SECRET: &str = "Xq7Zw";

pub(crate) fn run(input: &[u8]) {
    let Ok(uri) = std::str::from_utf8(input) else {
        return;
    };
    match ConnectionOptions::from_uri(uri) {
        Ok(options) => shown_and_parsed_again(&options),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
    if let Some(uri) = with_secret(uri) {
        let shown = match ConnectionOptions::from_uri(&uri) {
            Ok(options) => format!("{options} {options:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(SECRET), "the password is shown: {shown}");
    }
}

/// `Display` shows all but the password, the query, and how TLS is set up.
fn shown_and_parsed_again(options: &ConnectionOptions) {
    let shown = options.to_string();
    let again = match ConnectionOptions::from_uri(&shown) {
        Ok(again) => again,
        Err(error) => panic!("{shown} cannot be parsed: {error}"),
    };
    let parts = |it: &ConnectionOptions| {
        let (user, vhost) = (it.username.clone(), it.vhost.clone());
        (user, vhost, it.endpoints(), it.tls.is_some())
    };
    assert_eq!(parts(&again), parts(options), "{shown}");
    assert_eq!(again.to_string(), shown);
}

/// The URI with other words in its password. `None` if it has no password. A password is what a
/// reader would take for one: all from the first colon to the last `@`.
fn with_secret(uri: &str) -> Option<String> {
    let start = uri.find("://").map_or(0, |at| at + 3);
    let end = start + uri[start..].rfind('@')?;
    let start = start + uri[start..end].find(':')? + 1;
    let (before, password, after) = (&uri[..start], &uri[start..end], &uri[end..]);
    if before.contains(SECRET) || after.contains(SECRET) {
        return None;
    }
    let mut secret = String::new();
    let mut rest = password;
    while let Some(next) = rest.chars().next() {
        let is_escape = next == '%' && rest.is_char_boundary(rest.len().min(3));
        let is_word = |it: char| it.is_alphanumeric();
        let length = if is_escape {
            rest.len().min(3)
        } else {
            rest.find(|it| !is_word(it)).unwrap_or(rest.len())
        };
        match (is_escape, length) {
            (false, 0) => secret.push(next),
            (false, _) => secret.push_str(SECRET),
            (true, _) => secret.push_str(&rest[..length]),
        }
        rest = &rest[length.max(next.len_utf8())..];
    }
    Some(format!("{before}{secret}{after}"))
}
