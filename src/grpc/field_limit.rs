//! Limits the number of fields of a request before it is decoded: a field of two encoded bytes can take a hundred in
//! memory.

use std::sync::LazyLock;

use prost::Message as _;
use prost::bytes::Buf as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

use super::pb::FILE_DESCRIPTOR_SET;

/// Maximum number of fields of a request, including those of nested messages. The largest key, with 64 scopes and 32
/// metadata pairs, has less than half as many.
pub(super) const MAX_FIELDS: usize = 512;

/// Maximum nesting of messages; the same as in prost.
const MAX_DEPTH: usize = 100;

static MESSAGES: LazyLock<Messages> =
    LazyLock::new(|| Messages::of(&FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default()));

/// The type of a request message.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestKind(usize);

impl RequestKind {
    /// Finds the message `name` of this package. Returns `None` if no method takes it as its request.
    pub(super) fn find(name: &str) -> Option<Self> {
        let found = MESSAGES.requests.iter().find(|(known, _)| known == name);
        found.map(|&(_, message)| Self(message))
    }

    /// Returns whether the encoded request has at most [`MAX_FIELDS`] fields. Malformed requests are left to the
    /// decoder.
    pub(super) fn is_within_limit(self, request: &[u8]) -> bool {
        let mut left = MAX_FIELDS;
        MESSAGES.count(self.0, request, &mut left, MAX_DEPTH).is_some()
    }
}

/// All messages, identified by their index in `fields`.
#[derive(Debug, Default)]
struct Messages {
    /// The requests of all methods: name without the package, and index.
    requests: Vec<(String, usize)>,
    fields: Vec<Vec<(usize, Content)>>,
}

/// The content of a length-delimited field, if it has to be counted.
#[derive(Clone, Copy, Debug)]
enum Content {
    Message(usize),
    /// Packed numbers, of at least one byte each.
    Numbers,
}

impl Messages {
    fn of(files: &FileDescriptorSet) -> Self {
        let mut names = Vec::new();
        let mut messages = Vec::new();
        for file in &files.file {
            let mut found =
                file.message_type.iter().map(|it| (format!(".{}", file.package()), it)).collect::<Vec<_>>();
            while let Some((scope, message)) = found.pop() {
                let name = format!("{scope}.{}", message.name());
                found.extend(message.nested_type.iter().map(|it| (name.clone(), it)));
                names.push(name);
                messages.push(message);
            }
        }
        let number = |name: &str| names.iter().position(|known| known == name);
        let methods = files.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let requests = methods.filter_map(|method| {
            let name = method.input_type().rsplit('.').next()?;
            Some((name.to_owned(), number(method.input_type())?))
        });
        let requests = requests.collect();
        let fields = messages.into_iter().map(|message| contents(message, number)).collect();
        Self { requests, fields }
    }

    /// Subtracts the number of fields in `bytes` from `left`. Returns `None` if there are more.
    fn count(&self, message: usize, mut bytes: &[u8], left: &mut usize, depth: usize) -> Option<()> {
        while let Ok(tag) = prost::decode_length_delimiter(&mut bytes) {
            *left = left.checked_sub(1)?;
            let length = match tag & 7 {
                0 => bytes.iter().position(|byte| *byte < 0x80).map(|last| last + 1),
                1 => Some(8),
                2 => prost::decode_length_delimiter(&mut bytes).ok(),
                5 => Some(4),
                // The fields of a group follow its start tag.
                _ => Some(0),
            };
            let Some(value) = length.and_then(|length| bytes.get(..length)) else { return Some(()) };
            let content = self.fields[message].iter().find(|(number, _)| *number == tag >> 3);
            match content {
                Some((_, Content::Message(inner))) if depth > 0 => {
                    self.count(*inner, value, left, depth - 1)?;
                }
                Some((_, Content::Numbers)) => *left = left.checked_sub(value.len())?,
                _ => {}
            }
            bytes.advance(value.len());
        }
        Some(())
    }
}

/// Returns the fields of `message` whose content has to be counted.
fn contents(
    message: &DescriptorProto,
    number: impl Fn(&str) -> Option<usize> + Copy,
) -> Vec<(usize, Content)> {
    let content = |field: &prost_types::FieldDescriptorProto| match field.r#type() {
        Type::Message => number(field.type_name()).map(Content::Message),
        Type::String | Type::Bytes | Type::Group => None,
        _ => (field.label() == Label::Repeated).then_some(Content::Numbers),
    };
    let fields = message
        .field
        .iter()
        .filter_map(|field| Some((usize::try_from(field.number()).ok()?, content(field)?)));
    fields.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::pb;

    fn is_within_limit<M: prost::Message + prost::Name>(message: &M) -> bool {
        RequestKind::find(M::NAME).unwrap().is_within_limit(&message.encode_to_vec())
    }

    #[test]
    fn the_largest_key_is_within_the_limit() {
        let key = pb::Key {
            id: "i".into(),
            name: "n".into(),
            owner_id: "o".into(),
            scopes: (0..64).map(|number| number.to_string()).collect(),
            metadata: (0..32).map(|number| (number.to_string(), "v".into())).collect(),
            ..pb::Key::default()
        };
        let mask = prost_types::FieldMask { paths: vec!["name".into(); 5] };
        assert!(is_within_limit(&pb::ImportKeysRequest { key: Some(key.clone()), ..Default::default() }));
        let update_mask = Some(mask);
        assert!(is_within_limit(&pb::UpdateKeyRequest { key: Some(key), update_mask, ..Default::default() }));
    }

    #[test]
    fn repeated_fields_are_counted_in_every_message() {
        let many = |text: &str| vec![text.to_owned(); MAX_FIELDS + 1];
        let key = pb::Key { scopes: many("a"), ..pb::Key::default() };
        assert!(!is_within_limit(&pb::ValidateRequest { required_scopes: many("a"), ..Default::default() }));
        assert!(!is_within_limit(&pb::ImportKeysRequest { key: Some(key), ..Default::default() }));
        let update_mask = Some(prost_types::FieldMask { paths: many("name") });
        assert!(!is_within_limit(&pb::UpdateKeyRequest { update_mask, ..Default::default() }));
        assert!(!is_within_limit(&pb::ListKeysRequest { states: vec![1; MAX_FIELDS], ..Default::default() }));
        assert!(is_within_limit(&pb::ListKeysRequest { states: vec![1; 3], ..Default::default() }));
    }

    #[test]
    fn unknown_fields_are_counted_and_malformed_requests_are_left_to_the_decoder() {
        let kind = RequestKind::find("ValidateRequest").unwrap();
        // Field 100: a number, eight bytes, four bytes, a group.
        let unknown =
            [&[0xa0, 0x06, 0x01][..], &[0xa1, 0x06, 0, 0, 0, 0, 0, 0, 0, 0], &[0xa5, 0x06, 0, 0, 0, 0]];
        for field in unknown.into_iter().chain([&[0xa3, 0x06, 0xa4, 0x06][..]]) {
            assert!(kind.is_within_limit(&field.repeat(MAX_FIELDS / 2)));
            assert!(!kind.is_within_limit(&field.repeat(MAX_FIELDS + 1)));
        }
        for malformed in [&[0x0a][..], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0xff; 11], &[0xa1, 0x06, 0]] {
            assert!(kind.is_within_limit(malformed));
        }
    }

    #[test]
    fn responses_have_no_limit() {
        assert!(RequestKind::find("ListKeysResponse").is_none());
    }
}
