//! A fake that behaves like an SMMU: registers, both queues, walks of the stream table, and caches of configuration and
//! translations that only commands empty. It can be slow, refuse commands, be full, or die.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use porthole_core::addr::PhysAddr;

use crate::smmuv3::Bus;

pub const IDR0: u32 = 0x0;
pub const IDR1: u32 = 0x4;
pub const IDR3: u32 = 0xc;
pub const IDR5: u32 = 0x14;
pub const AIDR: u32 = 0x1c;
pub const CR0: u32 = 0x20;
const CR0ACK: u32 = 0x24;
pub const CR2: u32 = 0x2c;
pub const GBPA: u32 = 0x44;
pub const GERROR: u32 = 0x60;
const GERRORN: u32 = 0x64;
pub const STRTAB: u32 = 0x80;
pub const STRTAB_CFG: u32 = 0x88;
const CMDQ_BASE: u32 = 0x90;
const CMDQ_PROD: u32 = 0x98;
const CMDQ_CONS: u32 = 0x9c;
const EVENTQ_BASE: u32 = 0xa0;
const EVENTQ_PROD: u32 = 0x100a8;
const EVENTQ_CONS: u32 = 0x100ac;

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Bypass,
    Abort,
    /// C_BAD_STREAMID.
    NoStream,
    /// C_BAD_STE.
    NotConfigured,
    /// Words 1 to 3 of the entry.
    Stage2([u64; 3]),
}

#[derive(Default)]
pub struct Inner {
    pub registers: HashMap<u32, u32>,
    long: HashMap<u32, u64>,
    memory: HashMap<u64, u64>,
    /// Register writes in their order.
    pub writes: Vec<(u32, u64)>,
    /// Commands that took effect, in their order.
    pub commands: Vec<[u64; 2]>,
    /// Commands (by opcode) that end with an error code, so many times.
    pub refuse: Vec<(u8, u32, u32)>,
    /// One command is done every so many looks at CMDQ_CONS; 0: at once.
    pub slow: u32,
    looks: u32,
    pub dead: bool,
    clock: u64,
    /// Ticks for which the CPU is stopped after each look at CMDQ_CONS.
    pub pause: u64,
    configurations: HashMap<u32, Outcome>,
    /// Cached descriptors of the first level, by the stream's upper bits.
    descriptors: HashMap<u32, u64>,
    /// Cached translations: VMID and page number.
    pub tlb: HashSet<(u16, u64)>,
    /// A stream that is looked up, without caches, after every change of memory; and the SMMU caches whatever it can
    /// of it at once.
    pub watched: Option<u32>,
    pub seen: Vec<Outcome>,
    /// Where the watched stream's entry was found last.
    entry: u64,
}

/// A handle to a fake.
#[derive(Clone)]
pub struct Fake(Arc<Mutex<Inner>>);

impl Fake {
    /// What QEMU 10's has: stage 2, two levels, coherent, 16 bits of streams, ranges, BBML 2, 44 bits.
    pub fn qemu() -> Self {
        let mut inner = Inner::default();
        for (register, value) in [
            (
                IDR0,
                1 | 2 << 2 | 1 << 4 | 1 << 18 | 2 << 21 | 1 << 24 | 1 << 27,
            ),
            (IDR1, 16 | 19 << 16 | 19 << 21),
            (IDR3, 1 << 10 | 2 << 11),
            (IDR5, 4 | 1 << 4),
            (AIDR, 1),
            (GBPA, 1 << 12),
        ] {
            inner.registers.insert(register, value);
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    pub fn with(register: u32, value: u32) -> Self {
        let fake = Self::qemu();
        fake.inner().registers.insert(register, value);
        fake
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub fn register(&self, register: u32) -> u32 {
        self.inner().get(register)
    }

    /// A transaction of a stream, by what the SMMU has cached, else by its tables.
    pub fn access(&self, stream: u32) -> Outcome {
        let mut inner = self.inner();
        if let Some(outcome) = inner.configurations.get(&stream) {
            return *outcome;
        }
        let outcome = inner.look_up(stream, true);
        if inner.get(CR0) & 1 != 0 {
            inner.configurations.insert(stream, outcome);
        }
        outcome
    }

    /// Records an event as the SMMU would.
    pub fn event(&self, record: [u64; 4]) {
        let mut inner = self.inner();
        let base = inner.long[&EVENTQ_BASE];
        let log2 = base & 31;
        let (prod, cons) = (inner.get(EVENTQ_PROD), inner.get(EVENTQ_CONS));
        let mask = (2u32 << log2) - 1;
        if (prod ^ cons) & mask == 1 << log2 {
            let acknowledged = (prod ^ cons) >> 31 == 0;
            if acknowledged {
                inner.registers.insert(EVENTQ_PROD, prod ^ 1 << 31);
            }
            return;
        }
        let index = u64::from(prod & (mask >> 1));
        let at = (base & 0x000f_ffff_ffff_ffe0) + index * 32;
        for (word, value) in (0..).zip(record) {
            inner.memory.insert(at + word * 8, value);
        }
        let next = (prod & mask).wrapping_add(1) & mask | prod & 1 << 31;
        inner.registers.insert(EVENTQ_PROD, next);
    }
}

impl Inner {
    pub fn get(&self, register: u32) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    fn word(&self, at: u64) -> u64 {
        self.memory.get(&at).copied().unwrap_or(0)
    }

    fn look_up(&self, stream: u32, caches: bool) -> Outcome {
        if self.get(CR0) & 1 == 0 {
            return if self.get(GBPA) & 1 << 20 != 0 {
                Outcome::Abort
            } else {
                Outcome::Bypass
            };
        }
        let config = self.get(STRTAB_CFG);
        let (log2, split) = (config & 63, config >> 6 & 31);
        if u64::from(stream) >> log2 != 0 {
            return Outcome::NoStream;
        }
        let base = self.long[&STRTAB] & 0x000f_ffff_ffff_ffc0;
        let entry = if config >> 16 & 3 == 1 {
            assert_eq!(
                base % (8 << (log2 - split)),
                0,
                "first level aligned to its size"
            );
            let cached = self.descriptors.get(&(stream >> split)).filter(|_| caches);
            let descriptor = match cached {
                Some(descriptor) => *descriptor,
                None => self.word(base + u64::from(stream >> split) * 8),
            };
            let span = descriptor & 31;
            let index = u64::from(stream) & ((1 << split) - 1);
            if span == 0 || index >= 1 << (span - 1) {
                return Outcome::NoStream;
            }
            let table = descriptor & 0x000f_ffff_ffff_ffc0;
            assert_eq!(
                table % (64 << (span - 1)),
                0,
                "second level aligned to its size"
            );
            table + index * 64
        } else {
            assert_eq!(base % (64 << log2), 0, "table aligned to its size");
            base + u64::from(stream) * 64
        };
        let words: [u64; 8] = core::array::from_fn(|n| self.word(entry + n as u64 * 8));
        assert_eq!(words[4..], [0; 4]);
        match (words[0] & 1, words[0] >> 1 & 7) {
            (0, _) => Outcome::NotConfigured,
            (_, 0b000) => Outcome::Abort,
            (_, 0b110) => Outcome::Stage2([words[1], words[2], words[3]]),
            (_, 0b100) => Outcome::Bypass,
            (_, other) => panic!("Config {other:#b}"),
        }
    }

    /// Address of a stream's entry by the tables in memory; 0 if there is none.
    fn entry_of(&self, stream: u32) -> u64 {
        let config = self.get(STRTAB_CFG);
        let base = self.long.get(&STRTAB).copied().unwrap_or(0) & 0x000f_ffff_ffff_ffc0;
        let split = config >> 6 & 31;
        match (config >> 16 & 3, base) {
            (_, 0) => 0,
            (1, _) => {
                let descriptor = self.word(base + u64::from(stream >> split) * 8);
                let index = u64::from(stream) & ((1 << split) - 1);
                (descriptor & 0x000f_ffff_ffff_ffc0) + index * 64
            }
            _ => base + u64::from(stream) * 64,
        }
    }

    fn watch(&mut self) {
        if let Some(stream) = self.watched {
            self.entry = self.entry_of(stream);
            let outcome = self.look_up(stream, false);
            if self.seen.last() != Some(&outcome) {
                self.seen.push(outcome);
            }
            if self.get(CR0) & 1 == 0 {
                return;
            }
            let config = self.get(STRTAB_CFG);
            if config >> 16 & 3 == 1 {
                let group = stream >> (config >> 6 & 31);
                let base = self.long[&STRTAB] & 0x000f_ffff_ffff_ffc0;
                let descriptor = self.word(base + u64::from(group) * 8);
                self.descriptors.entry(group).or_insert(descriptor);
            }
            let outcome = self.look_up(stream, true);
            self.configurations.entry(stream).or_insert(outcome);
        }
    }

    /// Does one command; false if there is none or it cannot be done.
    fn consume(&mut self) -> bool {
        let errors = self.get(GERROR) ^ self.get(GERRORN);
        let (prod, cons) = (self.get(CMDQ_PROD), self.get(CMDQ_CONS) & 0xf_ffff);
        if self.dead || errors & 1 != 0 || self.get(CR0) & 8 == 0 || prod == cons {
            return false;
        }
        let base = self.long[&CMDQ_BASE];
        let log2 = base & 31;
        let mask = (2u32 << log2) - 1;
        assert!(prod.wrapping_sub(cons) & mask <= 1 << log2, "queue overrun");
        let at = (base & 0x000f_ffff_ffff_ffe0) + u64::from(cons & (mask >> 1)) * 16;
        let command = [self.word(at), self.word(at + 8)];
        let opcode = command[0] as u8;
        let refused = self.refuse.iter_mut().find(|r| r.0 == opcode && r.2 > 0);
        if let Some((_, code, times)) = refused {
            *times -= 1;
            let code = *code;
            self.registers.insert(CMDQ_CONS, cons | code << 24);
            let gerror = self.get(GERROR) ^ 1;
            self.registers.insert(GERROR, gerror);
            return false;
        }
        self.execute(command);
        self.commands.push(command);
        self.registers
            .insert(CMDQ_CONS, cons.wrapping_add(1) & mask);
        true
    }

    fn execute(&mut self, [first, second]: [u64; 2]) {
        let vmid = (first >> 32) as u16;
        match first as u8 {
            0x03 => {
                let stream = (first >> 32) as u32;
                let split = self.get(STRTAB_CFG) >> 6 & 31;
                self.configurations.remove(&stream);
                self.descriptors.remove(&(stream >> split));
                self.watch();
            }
            0x04 => {
                assert_eq!(second & 31, 31, "all streams");
                self.configurations.clear();
                self.descriptors.clear();
                self.watch();
            }
            0x20 | 0x46 => {}
            0x28 => self.tlb.retain(|(v, _)| *v != vmid),
            0x2a => {
                let (num, scale) = (first >> 12 & 31, first >> 20 & 31);
                let page = (second & 0x000f_ffff_ffff_f000) >> 12;
                let pages = if second >> 10 & 3 == 0 {
                    assert_eq!((num, scale), (0, 0), "NUM and SCALE need TG");
                    1
                } else {
                    assert!(
                        num + scale > 0,
                        "a range of one page with TTL 0 is reserved"
                    );
                    (num + 1) << scale
                };
                self.tlb
                    .retain(|(v, p)| *v != vmid || !(page..page + pages).contains(p));
            }
            0x30 => self.tlb.clear(),
            other => panic!("command {other:#x}"),
        }
    }
}

impl Bus for Fake {
    fn read(&self, register: u32) -> u32 {
        let mut inner = self.inner();
        if register == CMDQ_CONS {
            inner.clock += inner.pause;
            inner.looks += 1;
            if inner.slow > 0 && inner.looks.is_multiple_of(inner.slow) {
                inner.consume();
            }
        }
        inner.get(register)
    }

    fn write(&self, register: u32, value: u32) {
        let mut inner = self.inner();
        assert!(
            ![IDR0, IDR1, IDR3, IDR5, AIDR, CR0ACK, GERROR].contains(&register),
            "read only"
        );
        inner.writes.push((register, value.into()));
        if register == GBPA && value >> 31 == 0 {
            return;
        }
        let value = if register == GBPA {
            value & !(1 << 31)
        } else {
            value
        };
        inner.registers.insert(register, value);
        if register == CR0 && !inner.dead {
            inner.registers.insert(CR0ACK, value);
        }
        inner.watch();
        while inner.slow == 0 && inner.consume() {}
    }

    fn write_long(&self, register: u32, value: u64) {
        let mut inner = self.inner();
        let cr0 = inner.get(CR0);
        let enable = match register {
            STRTAB => 1,
            CMDQ_BASE => 8,
            _ => 4,
        };
        assert_eq!(cr0 & enable, 0, "{register:#x} is fixed while it is in use");
        inner.writes.push((register, value));
        inner.long.insert(register, value);
    }

    fn load(&self, at: PhysAddr) -> u64 {
        assert!(at.is_aligned(8));
        self.inner().word(at.raw())
    }

    fn store(&self, at: PhysAddr, value: u64) {
        assert!(at.is_aligned(8));
        let mut inner = self.inner();
        // An entry is filled in only when the SMMU has forgotten what it was (5.2, 3.21.3).
        let is_tail = !at.raw().is_multiple_of(64) && inner.word(at.raw()) != value;
        if let (true, Some(stream)) = (is_tail && inner.entry == at.raw() & !63, inner.watched) {
            let cached = inner.configurations.get(&stream);
            assert!(matches!(cached, None | Some(Outcome::Abort)), "{cached:?}");
        }
        inner.memory.insert(at.raw(), value);
        inner.watch();
    }

    fn barrier(&self) {}

    fn now(&self) -> u64 {
        self.inner().clock
    }

    fn second(&self) -> u64 {
        1000
    }

    fn relax(&self) {
        self.inner().clock += 1;
    }
}
