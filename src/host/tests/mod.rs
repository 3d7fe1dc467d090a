//! Tests that need a network: pairs of namespaces joined by two veth links, made and removed here.
//! They need root; without it they print why they are skipped.

mod looking;
mod namespace;
mod watching;
