//! Tests of the Helm chart: the objects that it renders, the values that it rejects, and containers that run
//! as rendered.

mod alerts;
mod checks;
mod container;
mod helm;
mod image;
mod kubelet;
mod refusals;
mod render;
mod run;
