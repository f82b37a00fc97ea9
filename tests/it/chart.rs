//! Tests of the Helm chart: the objects that it renders, the values that it rejects, and the containers of
//! its pods, which are run as rendered.

mod alerts;
mod checks;
mod container;
mod helm;
mod image;
mod invalid_values;
mod pods;
mod releases;
mod render;
