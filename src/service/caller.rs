//! Who administers keys.

use super::ClientRequestId;
use crate::domain::{ChangeContext, KeyId, RequestDigest, Scope, ScopeSet, Timestamp};

/// The scopes that open Keyvouch itself. An administrator holds them all.
const ADMIN: &str = "keyvouch.admin";
const ADMIN_SCOPES: [&str; 4] =
    [ADMIN, Permission::Read.scope(), Permission::Write.scope(), Permission::Validate.scope()];

/// What a caller may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// To ask whether keys may be used.
    Validate,
    /// To read keys and the audit trail, and to follow changes.
    Read,
    /// To change keys.
    Write,
}

impl Permission {
    /// The scope that a key needs for it; `keyvouch.admin` stands for all.
    #[must_use]
    pub const fn scope(self) -> &'static str {
        match self {
            Self::Validate => "keyvouch.validate",
            Self::Read => "keyvouch.read",
            Self::Write => "keyvouch.write",
        }
    }
}

/// The name of a caller.
#[derive(Clone, Debug)]
pub struct Actor(pub String);

/// An authenticated caller, and the call that it makes.
#[derive(Clone, Debug)]
pub struct Caller {
    name: String,
    request_id: String,
    held: ScopeSet,
    is_unasked: bool,
}

impl Caller {
    /// An administrator, who may do everything.
    #[must_use]
    pub fn admin(name: String, request_id: &str) -> Self {
        Self::holding(name, request_id, &ADMIN_SCOPES)
    }

    /// A service that validates keys, and may do nothing else.
    #[must_use]
    pub fn validator(name: String, request_id: &str) -> Self {
        Self::holding(name, request_id, &[Permission::Validate.scope()])
    }

    /// The bearer of a key with `scopes`.
    #[must_use]
    pub fn with_scopes(name: String, request_id: &str, scopes: &ScopeSet) -> Self {
        let reserved: Vec<_> = scopes.iter().filter(|scope| scope.is_reserved()).map(Scope::as_str).collect();
        if reserved.contains(&ADMIN) {
            Self::admin(name, request_id)
        } else {
            Self::holding(name, request_id, &reserved)
        }
    }

    fn holding(name: String, request_id: &str, scopes: &[&str]) -> Self {
        // Scopes that were scopes already are.
        let held = ScopeSet::parse("scopes", scopes.iter().copied()).unwrap_or_default();
        Self { name, request_id: request_id.to_owned(), held, is_unasked: false }
    }

    /// Whether it may do this.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.is_unasked || self.held.iter().any(|scope| scope.as_str() == permission.scope())
    }

    /// Someone without a credential, where none is asked for. He holds no reserved scope, so he can't grant one: what
    /// was made while the door was open must not open it later.
    #[must_use]
    pub fn anonymous(request_id: &str) -> Self {
        Self {
            name: "anonymous".into(),
            request_id: request_id.to_owned(),
            held: ScopeSet::default(),
            is_unasked: true,
        }
    }

    /// Its name, for the log.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor(self.name.clone())
    }

    /// The first of `scopes` that this caller can't grant.
    #[must_use]
    pub fn first_not_grantable<'s>(&self, scopes: &'s ScopeSet) -> Option<&'s Scope> {
        scopes.iter().find(|scope| scope.is_reserved() && !self.held.contains(scope))
    }

    /// What identifies this caller's request `id` to make a key.
    #[must_use]
    pub fn creation(&self, id: &ClientRequestId) -> RequestDigest {
        RequestDigest::of_creation(&self.name, id.as_str())
    }

    /// What identifies this caller's request `id` to rotate `key`.
    #[must_use]
    pub fn rotation(&self, key: KeyId, id: &ClientRequestId) -> RequestDigest {
        RequestDigest::of_rotation(&self.name, key, id.as_str())
    }

    /// The context of a change that this call makes at `now`.
    #[must_use]
    pub fn context(&self, now: Timestamp) -> ChangeContext {
        ChangeContext::new(self.name.clone(), self.request_id.clone(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(tokens: &[&str]) -> ScopeSet {
        ScopeSet::parse("scopes", tokens.iter().copied()).unwrap()
    }

    #[test]
    fn reserved_scopes_are_granted_only_by_who_holds_them() {
        let admin = Caller::admin("token:root".into(), "r");
        let anonymous = Caller::anonymous("r");
        let reserved = scopes(&["keyvouch.write", "read"]);
        assert_eq!(admin.first_not_grantable(&reserved), None);
        assert_eq!(anonymous.first_not_grantable(&reserved).unwrap().as_str(), "keyvouch.write");
        assert_eq!(anonymous.first_not_grantable(&scopes(&["read", "keyvouch"])), None);
        assert!(admin.first_not_grantable(&scopes(&["keyvouch.unheard-of"])).is_some());
    }

    #[test]
    fn scopes_open_what_they_name_and_no_more() {
        let may = |tokens: &[&str]| {
            let caller = Caller::with_scopes("key:x".into(), "r", &scopes(tokens));
            [Permission::Validate, Permission::Read, Permission::Write]
                .map(|permission| caller.may(permission))
        };
        assert_eq!(may(&["keyvouch.admin"]), [true, true, true]);
        assert_eq!(may(&["keyvouch.read", "other"]), [false, true, false]);
        assert_eq!(may(&["keyvouch.write"]), [false, false, true]);
        assert_eq!(may(&["keyvouch.validate"]), [true, false, false]);
        assert_eq!(may(&["read", "write", "admin", "keyvouch"]), [false; 3]);
        let writer = Caller::with_scopes("key:x".into(), "r", &scopes(&["keyvouch.write"]));
        assert_eq!(
            writer.first_not_grantable(&scopes(&["keyvouch.admin"])).unwrap().as_str(),
            "keyvouch.admin"
        );
        assert_eq!(writer.first_not_grantable(&scopes(&["keyvouch.write", "x"])), None);
    }
}
