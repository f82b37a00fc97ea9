//! Who administers keys.

use crate::domain::{ChangeContext, Scope, ScopeSet, Timestamp};

/// The scopes that open Keyvouch itself. An admin token holds them all.
const ADMIN_SCOPES: [&str; 3] = ["keyvouch.admin", "keyvouch.read", "keyvouch.write"];

/// An authenticated caller, and the call that it makes.
#[derive(Clone, Debug)]
pub struct Caller {
    name: String,
    request_id: String,
    held: ScopeSet,
}

impl Caller {
    /// The bearer of the admin token `name`.
    #[must_use]
    pub fn admin(name: &str, request_id: &str) -> Self {
        let held = ScopeSet::parse("scopes", ADMIN_SCOPES).unwrap_or_default();
        Self { name: format!("token:{name}"), request_id: request_id.to_owned(), held }
    }

    /// Someone without a credential, where none is asked for. He holds no reserved scope, so he can't grant one: what
    /// was made while the door was open must not open it later.
    #[must_use]
    pub fn anonymous(request_id: &str) -> Self {
        Self { name: "anonymous".into(), request_id: request_id.to_owned(), held: ScopeSet::default() }
    }

    /// The first of `scopes` that this caller can't grant.
    #[must_use]
    pub fn first_not_grantable<'s>(&self, scopes: &'s ScopeSet) -> Option<&'s Scope> {
        scopes.iter().find(|scope| scope.is_reserved() && !self.held.contains(scope))
    }

    /// The context of a change that this call makes at `now`.
    #[must_use]
    pub fn context(&self, now: Timestamp) -> ChangeContext {
        ChangeContext { actor: self.name.clone(), request_id: self.request_id.clone(), now }
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
        let admin = Caller::admin("root", "r");
        let anonymous = Caller::anonymous("r");
        let reserved = scopes(&["keyvouch.write", "read"]);
        assert_eq!(admin.first_not_grantable(&reserved), None);
        assert_eq!(anonymous.first_not_grantable(&reserved).unwrap().as_str(), "keyvouch.write");
        assert_eq!(anonymous.first_not_grantable(&scopes(&["read", "keyvouch"])), None);
        assert!(admin.first_not_grantable(&scopes(&["keyvouch.unheard-of"])).is_some());
    }
}
