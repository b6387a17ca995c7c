//! What the kernel's maps should hold, as a pure function of the snapshot and the node's facts.

pub mod endpoints;
