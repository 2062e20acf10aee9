//! Reads proto descriptors: the methods of a file, and which of them may be executed twice.
use std::collections::HashSet;

use prost::{
    DecodeError, Message,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint},
};
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};

/// The number of the one field of a `google.protobuf.FileDescriptorSet`.
const FILE: u32 = 1;

/// The operations that a proto declares with `idempotency_level` `NO_SIDE_EFFECTS` or `IDEMPOTENT`, in the
/// form `package.Service/Method`: they may be retried even if they may have been executed.
///
/// `descriptors` is an encoded `google.protobuf.FileDescriptorSet`, as proto compilers write it.
pub fn idempotent_operations(descriptors: &[u8]) -> Result<Vec<String>, DecodeError> {
    let methods = methods(descriptors)?.into_iter();
    Ok(methods.filter(|method| method.idempotent).map(|method| method.operation).collect())
}

/// All operations of an encoded `google.protobuf.FileDescriptorSet`, as `package.Service/Method`.
pub fn operations(descriptors: &[u8]) -> Result<Vec<String>, DecodeError> {
    Ok(methods(descriptors)?.into_iter().map(|method| method.operation).collect())
}

/// One encoded `google.protobuf.FileDescriptorSet` with the files of all `sets`; a file that several of them have equally
/// stands in it once. Files are not decoded, so that options which chassis does not know stay. A text that is no such set is left
/// out.
pub fn merge_descriptors(sets: &[Vec<u8>]) -> Vec<u8> {
    let (mut merged, mut seen) = (Vec::new(), HashSet::new());
    for file in sets.iter().flat_map(|set| files(set)) {
        if seen.insert(file) {
            encode_key(FILE, WireType::LengthDelimited, &mut merged);
            encode_varint(file.len() as u64, &mut merged);
            merged.extend_from_slice(file);
        }
    }
    merged
}

/// The encoded files of a set, up to the first thing that is none.
fn files(set: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut files) = (set, Vec::new());
    while !rest.is_empty() {
        let file = match decode_key(&mut rest) {
            Ok((FILE, WireType::LengthDelimited)) => decode_varint(&mut rest).ok(),
            _ => None,
        };
        let Some((file, after)) = file
            .and_then(|length| usize::try_from(length).ok())
            .and_then(|length| rest.split_at_checked(length))
        else {
            break;
        };
        files.push(file);
        rest = after;
    }
    files
}

/// A method, as declared in its proto.
pub(crate) struct Method {
    /// `package.Service/Method`.
    pub(crate) operation: String,
    pub(crate) idempotent: bool,
}

pub(crate) fn methods(descriptors: &[u8]) -> Result<Vec<Method>, DecodeError> {
    let mut methods = Vec::new();
    for file in FileDescriptorSet::decode(descriptors)?.file {
        let package = file.package();
        for service in &file.service {
            let dot = if package.is_empty() { "" } else { "." };
            for method in &service.method {
                let level = method.options.as_ref().map(|options| options.idempotency_level());
                methods.push(Method {
                    operation: format!("{package}{dot}{}/{}", service.name(), method.name()),
                    idempotent: level.is_some_and(|level| level != IdempotencyLevel::IdempotencyUnknown),
                });
            }
        }
    }
    Ok(methods)
}

#[cfg(test)]
mod tests {
    use prost_types::{FileDescriptorProto, MethodDescriptorProto, MethodOptions, ServiceDescriptorProto};

    use super::*;

    fn set(package: &str, methods: &[(&str, Option<IdempotencyLevel>)]) -> Vec<u8> {
        let method = |(name, level): &(&str, Option<IdempotencyLevel>)| MethodDescriptorProto {
            name: Some((*name).to_owned()),
            options: level
                .map(|level| MethodOptions { idempotency_level: Some(level.into()), ..Default::default() }),
            ..Default::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("Stock".to_owned()),
            method: methods.iter().map(method).collect(),
            ..Default::default()
        };
        let package = (!package.is_empty()).then(|| package.to_owned());
        let file = FileDescriptorProto { package, service: vec![service], ..Default::default() };
        FileDescriptorSet { file: vec![file] }.encode_to_vec()
    }

    #[test]
    fn reads_what_is_declared() {
        use IdempotencyLevel::{IdempotencyUnknown, Idempotent, NoSideEffects};
        let methods = [
            ("Get", Some(NoSideEffects)),
            ("Put", Some(Idempotent)),
            ("Reserve", Some(IdempotencyUnknown)),
            ("Watch", None),
        ];
        let read = |package| idempotent_operations(&set(package, &methods)).unwrap();
        assert_eq!(read("stock.v1"), ["stock.v1.Stock/Get", "stock.v1.Stock/Put"]);
        assert_eq!(read(""), ["Stock/Get", "Stock/Put"]);
    }

    #[test]
    fn sets_are_merged_without_what_they_share() {
        let (a, b) = (set("a", &[("Get", None)]), set("b", &[("Put", None)]));
        let both = [a.clone(), b.clone()].concat();
        let merged = merge_descriptors(&[both.clone(), b.clone(), a.clone()]);
        assert_eq!(merged, both);
        assert_eq!(operations(&merged).unwrap(), ["a.Stock/Get", "b.Stock/Put"]);
        assert_eq!(merge_descriptors(&[]), b"");
        // A field that is unknown, and one that is cut off.
        assert_eq!(merge_descriptors(&[[&a[..], b"\x12\x01x"].concat(), b[..b.len() - 1].to_vec()]), a);
        assert_eq!(merge_descriptors(&[b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec()]), b"");
        let echo = chassis_protos::echo::FILE_DESCRIPTOR_SET.to_vec();
        assert_eq!(merge_descriptors(&[echo.clone(), echo.clone()]), echo);
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(idempotent_operations(b"\xff\xff\xff").is_err());
        assert!(idempotent_operations(b"").unwrap().is_empty());
    }

    #[test]
    fn reads_the_tests_own_protos() {
        let read = idempotent_operations(chassis_protos::echo::FILE_DESCRIPTOR_SET).unwrap();
        assert_eq!(read, ["chassis.test.v1.Echo/Safe"]);
    }
}
