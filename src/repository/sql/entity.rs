//! The tables as SeaORM sees them. `migration/` creates them and never looks here.
#![expect(unreachable_pub, reason = "SeaORM's derives write `pub` items beside these")]

/// One key.
pub mod api_key {
    use std::fmt;

    use sea_orm::entity::prelude::*;

    #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "api_key")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub hash: Vec<u8>,
        pub prefix: String,
        pub name: String,
        pub description: String,
        pub owner_id: String,
        pub scopes: String,
        pub metadata: String,
        pub created_at: i64,
        pub updated_at: i64,
        pub expires_at: Option<i64>,
        pub revoked_at: Option<i64>,
        pub revoke_reason: Option<String>,
        pub rotated_from: Option<Uuid>,
        pub replaced_by: Option<Uuid>,
        pub revision: i64,
    }

    /// Shows the id alone: a row holds the hash.
    impl fmt::Debug for Model {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("api_key::Model").field("id", &self.id).finish_non_exhaustive()
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// When a key was last used.
pub mod api_key_usage {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "api_key_usage")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub key_id: Uuid,
        pub last_used_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// One change of a key.
pub mod key_event {
    use std::fmt;

    use sea_orm::entity::prelude::*;

    #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "key_event")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub revision: i64,
        pub nonce: i64,
        pub key_id: Uuid,
        pub hash: Vec<u8>,
        pub owner_id: String,
        pub kind: String,
        pub changed_fields: String,
        pub actor: String,
        pub request_id: String,
        pub created_at: i64,
    }

    /// Shows the revision alone: a row holds the hash.
    impl fmt::Debug for Model {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("key_event::Model").field("revision", &self.revision).finish_non_exhaustive()
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The last revision that was given out.
pub mod revision_head {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "revision_head")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub revision: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
