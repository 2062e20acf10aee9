//! Parts of a call, measured alone: pipelines and layers over a leaf that answers at once, a pick, a lookup,
//! a swap.
pub mod leaf;
pub mod lookup;
pub mod one_layer;
pub mod pick;
pub mod pipelines;
pub mod swap;
