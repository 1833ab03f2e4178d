//! Devices without virtio: the serial port, the clock, and the terminal that input comes from.

pub mod input;
pub mod rtc;
pub mod serial;
