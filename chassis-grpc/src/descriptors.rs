//! Reads proto descriptors: the methods of a file, and which of them may be executed twice.
use prost::{DecodeError, Message};
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};

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
