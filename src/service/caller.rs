//! Callers and their permissions.

use super::ClientRequestId;
use crate::domain::{ChangeContext, KeyId, RequestDigest, Scope, ScopeSet, Timestamp};

/// Scopes with a meaning for Keyvouch itself. An administrator holds all of them.
const ADMIN: &str = "keyvouch.admin";
const ADMIN_SCOPES: [&str; 4] =
    [ADMIN, Permission::Read.scope(), Permission::Write.scope(), Permission::Validate.scope()];

/// Permission that a caller can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Permission to validate keys.
    Validate,
    /// Permission to read keys and the audit trail, and to follow changes.
    Read,
    /// Permission to create and change keys.
    Write,
}

impl Permission {
    /// Returns the scope that grants this permission to a key. The scope `keyvouch.admin` grants all
    /// permissions.
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
    has_all_permissions: bool,
}

impl Caller {
    /// Creates an administrator, who has all permissions.
    #[must_use]
    pub fn admin(name: String, request_id: &str) -> Self {
        Self::holding(name, request_id, &ADMIN_SCOPES)
    }

    /// Creates a caller that may only validate keys.
    #[must_use]
    pub fn validator(name: String, request_id: &str) -> Self {
        Self::holding(name, request_id, &[Permission::Validate.scope()])
    }

    /// Creates the caller that authenticated with a key that has `scopes`.
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
        // These are constants or scopes that were parsed before, so the default is unreachable.
        let held = ScopeSet::parse("scopes", scopes.iter().copied()).unwrap_or_default();
        Self { name, request_id: request_id.to_owned(), held, has_all_permissions: false }
    }

    /// Returns whether the caller has this permission.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.has_all_permissions || self.held.iter().any(|scope| scope.as_str() == permission.scope())
    }

    /// Creates the caller of a server that requires no credentials. It has all permissions, but holds no
    /// reserved scope and therefore can't grant any. Otherwise, keys from that time would keep permissions
    /// after credentials are required.
    #[must_use]
    pub fn anonymous(request_id: &str) -> Self {
        Self {
            name: "anonymous".into(),
            request_id: request_id.to_owned(),
            held: ScopeSet::default(),
            has_all_permissions: true,
        }
    }

    /// Returns the caller's name, for the log.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor(self.name.clone())
    }

    /// Returns the first of `scopes` that this caller can't grant, or `None` if it can grant all of them.
    #[must_use]
    pub fn first_not_grantable<'s>(&self, scopes: &'s ScopeSet) -> Option<&'s Scope> {
        scopes.iter().find(|scope| scope.is_reserved() && !self.held.contains(scope))
    }

    /// Returns the digest that identifies this caller's creation request `id`.
    #[must_use]
    pub fn creation(&self, id: &ClientRequestId) -> RequestDigest {
        RequestDigest::of_creation(&self.name, id.as_str())
    }

    /// Returns the digest that identifies this caller's request `id` to rotate `key`.
    #[must_use]
    pub fn rotation(&self, key: KeyId, id: &ClientRequestId) -> RequestDigest {
        RequestDigest::of_rotation(&self.name, key, id.as_str())
    }

    /// Returns the context of a change that this call makes at `now`.
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
    fn reserved_scopes_are_granted_only_by_callers_that_hold_them() {
        let admin = Caller::admin("token:root".into(), "r");
        let anonymous = Caller::anonymous("r");
        let reserved = scopes(&["keyvouch.write", "read"]);
        assert_eq!(admin.first_not_grantable(&reserved), None);
        assert_eq!(anonymous.first_not_grantable(&reserved).unwrap().as_str(), "keyvouch.write");
        assert_eq!(anonymous.first_not_grantable(&scopes(&["read", "keyvouch"])), None);
        assert!(admin.first_not_grantable(&scopes(&["keyvouch.unheard-of"])).is_some());
    }

    #[test]
    fn reserved_scopes_grant_only_their_own_permissions() {
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
