//! Names and numbers of the ioctls, as `_IOC` of Linux's asm-generic/ioctl.h makes them (arm64 and x86 use it).
//! Which structure goes with which is here; the structures are in `layout`.

use crate::layout::*;

const MAGIC: u32 = 0xD7;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// An ioctl that takes a `T`.
#[derive(Debug)]
pub struct Call<T> {
    /// As in the header.
    pub name: &'static str,
    /// The request.
    pub number: u32,
    argument: core::marker::PhantomData<fn(T)>,
}

const fn call<T>(name: &'static str, direction: u32, nr: u32) -> Call<T> {
    Call {
        name,
        number: direction << 30 | (size_of::<T>() as u32) << 16 | MAGIC << 8 | nr,
        argument: core::marker::PhantomData,
    }
}

impl<T> Call<T> {
    /// A call of another kernel interface: `number` must be one whose argument is a pointer to a `T`.
    pub(crate) const fn other(name: &'static str, number: u32) -> Self {
        Self {
            name,
            number,
            argument: core::marker::PhantomData,
        }
    }
}

macro_rules! calls {
    ($($name:ident($ty:ty) = $direction:expr, $nr:literal;)*) => {
        $(pub const $name: Call<$ty> = call(stringify!($name), $direction, $nr);)*
        #[cfg(test)]
        pub fn all() -> Vec<(&'static str, u32)> {
            vec![$(($name.name, $name.number)),*]
        }
    };
}

calls! {
    INFO(Info) = READ, 0x00;
    CREATE_VM(CreateVm) = READ | WRITE, 0x01;
    LIST(List) = READ | WRITE, 0x02;
    AUDIT(Audit) = READ, 0x03;
    LOG_READ(LogRead) = READ | WRITE, 0x04;
    STATS(Stats) = READ | WRITE, 0x05;
    PAGE_INFO(PageInfo) = READ | WRITE, 0x06;
    PAGE_FIND(PageFind) = READ | WRITE, 0x07;
    VM_WINDOW(VmWindow) = READ | WRITE, 0x08;
    DMA_CONFINE(DmaConfine) = READ | WRITE, 0x09;
    DMA_RELEASE(DmaRelease) = READ | WRITE, 0x0a;
    DMA_INFO(DmaInfo) = READ | WRITE, 0x0b;
    VM_LOAD(Load) = READ | WRITE, 0x20;
    VM_POPULATE(Populate) = READ | WRITE, 0x21;
    VM_FINALIZE(Finalize) = READ | WRITE, 0x22;
    VM_CREATE_VCPU(CreateVcpu) = READ | WRITE, 0x23;
    VM_MEASUREMENT(Measurement) = READ, 0x24;
    VM_INFO(VmInfo) = READ, 0x25;
    WINDOW_CREATE(WindowCreate) = READ | WRITE, 0x30;
    WINDOW_MOVE(WindowMove) = READ | WRITE, 0x31;
    WINDOW_DESTROY(WindowDestroy) = READ | WRITE, 0x32;
    WINDOW_ADD_FUNCTION(WindowFunction) = READ | WRITE, 0x33;
    WINDOW_REMOVE_FUNCTION(WindowFunction) = READ | WRITE, 0x34;
    WINDOW_INFO(WindowInfo) = READ | WRITE, 0x35;
    IRQ_LINE(IrqLine) = READ | WRITE, 0x40;
    IRQFD(IrqFd) = READ | WRITE, 0x41;
    IOEVENTFD(IoEventFd) = WRITE, 0x42;
    VCPU_RUN(()) = 0, 0x60;
}
