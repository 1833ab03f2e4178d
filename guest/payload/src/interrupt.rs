//! Sleeping until something happens: a device's message, or the timer where there are no messages.
//! The handler only acknowledges; what happened is for the sleeper to look up when it wakes.

use core::sync::atomic::{AtomicU64, Ordering};

use porthole_runtime::exception::{self, Frame};
use porthole_runtime::gic::{self, Gic};
use porthole_runtime::{reg, timer};

use crate::machine::MsiFrame;

/// Interrupts taken since the start.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// Microseconds between two looks at a device that sends no messages.
const POLL_MICROS: u64 = 1000;

fn on_irq(_: &mut Frame) -> bool {
    let intid = gic::acknowledge();
    if intid >= 1020 {
        return true;
    }
    if intid == timer::INTID {
        timer::disarm();
    }
    TAKEN.fetch_add(1, Ordering::Relaxed);
    gic::end(intid);
    true
}

/// Interrupts taken since the start.
pub fn taken() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

/// Where a device sends its message, and what it writes there.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Address of the doorbell.
    pub address: u64,
    /// The interrupt's number.
    pub intid: u32,
}

/// Sets up GIC and timer of the boot CPU, and the first MSI of the frame.
pub fn init(gic: &Gic, frame: Option<&MsiFrame>) -> Option<Message> {
    exception::on_irq(Some(on_irq));
    gic.init();
    gic.init_cpu(0);
    gic.enable_private(0, timer::INTID);
    let message = frame.filter(|f| f.count > 0).map(|f| Message {
        address: f.doorbell,
        intid: f.base,
    });
    if let Some(message) = message {
        gic.enable_spi(message.intid, 0, true);
    }
    reg::irq_enable();
    message
}

/// Sleeps until `happened` is true. With `messages`, only interrupts and `deadline` (a counter value) wake it.
/// Returns whether it happened before the deadline.
pub fn sleep_until(
    messages: bool,
    deadline: Option<u64>,
    mut happened: impl FnMut() -> bool,
) -> bool {
    loop {
        // Masked from the look to the WFI, which wakes for a masked interrupt too: none is missed between them.
        reg::irq_disable();
        let late = deadline.is_some_and(|d| reg::counter() >= d);
        let happened = happened();
        if happened || late {
            timer::disarm();
            reg::irq_enable();
            return happened;
        }
        let left = deadline.map(|d| d.saturating_sub(reg::counter()));
        let poll = (!messages).then(|| timer::ticks(POLL_MICROS));
        if let Some(ticks) = left.into_iter().chain(poll).min() {
            timer::arm(ticks);
        }
        reg::wfi();
        reg::irq_enable();
    }
}
