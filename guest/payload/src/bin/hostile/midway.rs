//! What happens to requests under way: a reset in the middle of them, and descriptors that another CPU changes while
//! the device reads them (a25: changed after they were checked).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use porthole_payload::fail;
use porthole_runtime::{psci, reg, smp, timer};
use virtio_drivers::transport::DeviceType;

use crate::Bench;
use crate::health::{READ, SECTOR, header};
use crate::victim::{DATA, NEEDS_RESET, NEXT, SEND, STATUS, WRITE, descriptor, patiently};

/// Resets in the middle of requests.
const RESETS: u32 = 8;
/// Milliseconds in which a device that was reset must have touched nothing.
const QUIET_MILLIS: u64 = 5;
/// What stands where the requests were.
const CLEAN: u64 = 0xc1ea_c1ea_c1ea_c1ea;
/// Bytes that the requests write to, or read from.
const TOUCHED: u64 = 0x2000;
/// Rounds with a descriptor that changes.
const CHANGES: u32 = 20;

/// All attacks on device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    for _ in 0..RESETS {
        reset(bench, n);
    }
    if let Some(cpu) = bench.helper {
        change(bench, n, cpu);
    }
}

/// A reset with requests under way; after it the device touches nothing any more.
fn reset(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    victim.busy();
    victim.attacks += 1;
    if !victim.raw.reset() {
        fail!(
            "{}: it does not reset in the middle of requests",
            victim.name
        );
    }
    let window = victim.window();
    window.fill(0, DATA, 0);
    window.fill(DATA, TOUCHED, CLEAN);
    let quiet = reg::counter() + timer::ticks(QUIET_MILLIS * 1000);
    while reg::counter() < quiet {
        reg::relax();
    }
    let touched = window.find_other(0, DATA, 0);
    if let Some(at) = touched.or(window.find_other(DATA, TOUCHED, CLEAN)) {
        fail!(
            "{}: it writes to its window at {at:#x} after a reset",
            victim.name
        );
    }
    bench.restart(n, "a reset in the middle of requests");
}

/// Where the second CPU writes; zero: it goes off.
static PLACE: AtomicU64 = AtomicU64::new(0);
/// The two values that it writes in turn.
static VALUES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Whether it is on, as it says itself.
static AT_WORK: AtomicBool = AtomicBool::new(false);

extern "C" fn paint(_: u64) -> ! {
    AT_WORK.store(true, Ordering::SeqCst);
    loop {
        for value in &VALUES {
            let place = PLACE.load(Ordering::SeqCst);
            if place == 0 {
                AT_WORK.store(false, Ordering::SeqCst);
                psci::psci(psci::CPU_OFF, 0, 0, 0);
            }
            let value = value.load(Ordering::Relaxed);
            // SAFETY: the first CPU names a descriptor's address field in a window that stays mapped, and does
            // nothing else with it until this CPU is off.
            unsafe { (place as *mut u64).write_volatile(value) };
        }
    }
}

/// Has the second CPU write there.
fn paint_at(cpu: u64, place: u64) {
    PLACE.store(place, Ordering::SeqCst);
    // It may still be on its way off.
    if !patiently(|| smp::start(cpu, 1, paint, 0) == 0) {
        fail!("the second CPU does not start");
    }
    if !patiently(|| AT_WORK.load(Ordering::SeqCst)) {
        fail!("the second CPU does nothing");
    }
}

/// Has it stop.
fn paint_no_more() {
    PLACE.store(0, Ordering::SeqCst);
    if !patiently(|| !AT_WORK.load(Ordering::SeqCst)) {
        fail!("the second CPU does not stop");
    }
}

/// A descriptor whose address is now inside, now outside the window, and changes all the time: the device takes it
/// for either, and never reaches what is outside.
fn change(bench: &mut Bench, n: usize, cpu: u64) {
    let outside = bench.private.base();
    let (mut faults, mut served) = (0, 0);
    for _ in 0..CHANGES {
        let victim = &mut bench.victims[n];
        victim.start();
        let queue = u16::from(victim.waits(0));
        let flags = if victim.receives(queue) { WRITE } else { 0 };
        let inside = victim.bus(DATA);
        let (mut head, mut changing) = (0, descriptor(inside, SECTOR, flags, 0));
        if victim.kind == DeviceType::Block {
            // A read, whose data is what changes.
            header(victim.window(), READ, 0);
            head = 1;
            changing = descriptor(inside, SECTOR, WRITE | NEXT, 2);
            victim.describe(queue, 1, descriptor(victim.bus(SEND), 16, NEXT, 0));
            victim.describe(queue, 2, descriptor(victim.bus(STATUS), 1, WRITE, 0));
        }
        victim.describe(queue, 0, changing);
        VALUES[0].store(inside, Ordering::Relaxed);
        VALUES[1].store(outside, Ordering::Relaxed);
        paint_at(cpu, victim.rings(queue)[0]);
        victim.offer(queue, head);
        victim.kick(queue);
        victim.attacks += 1;
        let mut fault = false;
        let over = patiently(|| {
            fault = victim.raw.status() & NEEDS_RESET != 0;
            fault || victim.used(queue).is_some()
        });
        paint_no_more();
        if !over {
            fail!(
                "{}: a descriptor that changes is never done with",
                victim.name
            );
        }
        if fault {
            faults += 1;
            victim.resets += 1;
        } else {
            served += 1;
        }
    }
    porthole_runtime::println!(
        "hostile: {}: a changing descriptor was taken {served} times and refused {faults} times",
        bench.victims[n].name
    );
    bench.restart(n, "descriptors that change");
}
