//! The Helm chart: what it renders, what it refuses, and that what it renders runs.

mod alerts;
mod checks;
mod container;
mod helm;
mod image;
mod kubelet;
mod refusals;
mod render;
mod run;
