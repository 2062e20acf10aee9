//! The entry of an instance in etcd: its key, and its value in JSON.
use chassis_core::registry::{Instance, RegistryError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

/// The bytes that are written unchanged in a key.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// A larger value is no instance: every process that calls the service would keep it in memory.
const MAX_VALUE: usize = 64 << 10;

/// The prefix of the keys of all services.
pub(crate) fn services(prefix: &str) -> String {
    format!("{}/services/", prefix.trim_end_matches('/'))
}

/// The prefix of the keys of `service`.
pub(crate) fn service(prefix: &str, service: &str) -> String {
    format!("{}{}/", services(prefix), utf8_percent_encode(service, &ESCAPED))
}

/// The key of one instance.
pub(crate) fn key(prefix: &str, of: &str, id: &str) -> String {
    format!("{}{}", service(prefix, of), utf8_percent_encode(id, &ESCAPED))
}

/// The service that a key below [`services`] belongs to.
pub(crate) fn service_of(key: &[u8], below: &str) -> Option<String> {
    let rest = key.strip_prefix(below.as_bytes())?;
    let end = rest.iter().position(|byte| *byte == b'/')?;
    percent_decode(&rest[..end]).decode_utf8().ok().map(|name| name.into_owned())
}

/// The value of the entry of `instance`.
pub(crate) fn write(instance: &Instance) -> Vec<u8> {
    serde_json::to_vec(instance).expect("texts, numbers and JSON values can be written as JSON")
}

/// Parses the instance of `service` from the value at a key that ends in `id`.
///
/// # Errors
/// The reason why it is invalid.
pub(crate) fn read(value: &[u8], service: &str, id: &[u8]) -> Result<Instance, RegistryError> {
    if value.len() > MAX_VALUE {
        return Err(RegistryError::new(format!("it has {} bytes, {MAX_VALUE} are allowed", value.len())));
    }
    let mut instance: Instance =
        serde_json::from_slice(value).map_err(|error| RegistryError::new(error.to_string()))?;
    let at = percent_decode(id).decode_utf8_lossy();
    if instance.id != at {
        return Err(RegistryError::new(format!("its id is `{}`", instance.id.escape_debug())));
    }
    instance.check_for(service)?;
    instance.service = service.to_owned();
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use chassis_core::registry::Status;

    use super::*;

    #[test]
    fn keys_hold_any_name() {
        assert_eq!(key("/chassis", "stock", "stock-1"), "/chassis/services/stock/stock-1");
        assert_eq!(key("/a/", "a/b", "100 %"), "/a/services/a%2Fb/100%20%25");
        for name in ["stock", "../x", "/", "naïve 名", "a\nb", "%2e"] {
            let key = key("", name, name);
            assert_eq!(service_of(key.as_bytes(), "/services/").as_deref(), Some(name));
        }
        assert_eq!(service_of(b"/services/stock", "/services/"), None);
        assert_eq!(service_of(b"/other/stock/a", "/services/"), None);
    }

    #[test]
    fn an_instance_is_read_as_it_was_written() {
        let mut stock =
            Instance::new("stock", "a").with_address("grpc", "10.0.0.5:50051").with_label("t", "x");
        assert_eq!(
            String::from_utf8(write(&stock)).unwrap(),
            r#"{"id":"a","service":"stock","addresses":{"grpc":"10.0.0.5:50051"},"labels":{"t":"x"}}"#
        );
        stock = stock.with_weight(0).with_version("1.2").with_zone("eu").with_region("europe");
        stock = stock.with_status(Status::OutOfService).with_other("gpu", serde_json::json!({ "count": 2 }));
        assert_eq!(read(&write(&stock), "stock", b"a").unwrap(), stock);
    }

    #[test]
    fn what_is_no_instance_of_the_service_is_refused_with_a_reason() {
        for (value, why) in [
            (r#"{"id":"a""#.to_owned(), "EOF"),
            ("\0".to_owned(), "expected value"),
            (r#"{"id":"a"}"#.to_owned(), "missing field `addresses`"),
            (r#"{"id":"b","addresses":{"grpc":"h:1"}}"#.to_owned(), "its id is `b`"),
            (r#"{"id":"a","service":"other","addresses":{"grpc":"h:1"}}"#.to_owned(), "belongs to `other`"),
            (r#"{"id":"a","addresses":{"grpc":"h:0"}}"#.to_owned(), "port 0"),
            (r#"{"id":"a","addresses":{}}"#.to_owned(), "no address"),
            (r#"{"id":"a","addresses":{"grpc":"h:1"},"weight":-1}"#.to_owned(), "invalid value"),
            ("x".repeat(MAX_VALUE + 1), "65536 are allowed"),
        ] {
            let error = read(value.as_bytes(), "stock", b"a").expect_err(&value).to_string();
            assert!(error.contains(why), "{value}: {error}");
        }
        let newer = r#"{"id":"a","service":"stock","addresses":{"grpc":"h:1"},"tags":["x"]}"#;
        assert_eq!(write(&read(newer.as_bytes(), "stock", b"a").unwrap()), newer.as_bytes());
        let short = r#"{"id":"a","addresses":{"grpc":"h:1"}}"#;
        assert_eq!(read(short.as_bytes(), "stock", b"a").unwrap().service, "stock");
    }
}
