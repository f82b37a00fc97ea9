//! All integration tests in one binary: links are slow.

mod repository;
