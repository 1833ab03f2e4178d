//! Tests of the memory half of core on the fake machine: the production code, every change followed by the
//! invariants of the design.

mod audit;
mod confine;
mod failure;
mod model;
mod pins;
mod remains;
mod sharing;
mod support;
mod threads;
mod transfer;
